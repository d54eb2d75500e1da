"""What other workers have and do, by what they say of themselves: heartbeats, and facts between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from bitinglip.events import subjects
from bitinglip.events.direct import get_last_each
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.log import EventLog
from bitinglip.events.registry import Event
from bitinglip.events.streams import WORKERS
from bitinglip.events.worker import (
    ServedModel,
    WorkerHeartbeat,
    WorkerModelLoaded,
    WorkerModelsChanged,
    WorkerStarted,
    WorkerStopped,
)
from bitinglip.workers.view import CardView, Held

LATE_BEATS = 3.0
"""Heartbeats that a peer may miss before it counts as gone."""


@dataclass(slots=True)
class _Peer:
    """Another worker."""

    serves: frozenset[str] | None = None
    revisions: dict[str, str] = field(default_factory=dict[str, str])
    beat: WorkerHeartbeat | None = None
    heard_at: float = 0.0
    worked_at: float = 0.0
    since: dict[str, float] = field(default_factory=dict[str, float])
    """Model in memory -> when it was first seen there."""

    def serve(self, models: Iterable[ServedModel]) -> None:
        """Take in which models it serves."""
        revisions = {model.reference: model.revision for model in models}
        self.serves = frozenset(revisions)
        self.revisions = {reference: revision for reference, revision in revisions.items() if revision is not None}


class Peers:
    """The other workers of the cluster."""

    def __init__(self, event_log: EventLog, worker_id: str, heartbeat_s: float, changed: Callable[[], None]) -> None:
        """`changed` is called when one of them comes, goes, becomes idle or busy, or loads a model."""
        self._log = event_log
        self._worker_id = worker_id
        self._late_s = heartbeat_s * LATE_BEATS
        self._changed = changed
        self._peers: dict[str, _Peer] = {}

    async def start(self) -> None:
        """Read what was last said, and listen from now on.

        Raises:
            NoServer: the server does not answer.
        """
        self._subscription = await self._log.connection.subscribe(subjects.worker_subject("*", "*"), self._heard)
        await self.read()

    async def read(self) -> None:
        """Take in what was last said.

        Raises:
            NoServer: the server does not answer.
        """
        said: list[RawMessage] = []
        for name in ("started", "models_changed", "heartbeat", "stopped"):
            said += await get_last_each(self._log.connection, WORKERS, subjects.worker_subject("*", name))
        for message in sorted(said, key=lambda message: message.sequence):
            age_s = self._log.clock().timestamp() - message.time_ns / 1e9
            self._take(decode(message, WORKERS).event, time.monotonic() - max(0.0, age_s))

    async def close(self) -> None:
        """Listen no more."""
        await self._log.connection.unsubscribe(self._subscription)

    def cards(self) -> list[CardView]:
        """Return the cards of those that live."""
        now = time.monotonic()
        return [_card(peer, peer.beat, now) for peer in self._peers.values() if peer.beat and self._lives(peer, now)]

    def _lives(self, peer: _Peer, now: float) -> bool:
        return now - peer.heard_at <= self._late_s

    async def _heard(self, msg: Any) -> None:
        self._take(decode(RawMessage(0, 0, msg.subject, msg.data), WORKERS).event, time.monotonic())

    def _take(self, event: Event, at: float) -> None:
        worker_id = getattr(event, "worker_id", self._worker_id)
        if worker_id == self._worker_id:
            return
        peer = self._peers.setdefault(worker_id, _Peer())
        match event:
            case WorkerStarted():
                if at > peer.heard_at:
                    peer.beat = None
                peer.serve(event.models)
            case WorkerModelsChanged():
                peer.serve(event.models)
                self._changed()
            case WorkerStopped():
                if at > peer.heard_at:
                    peer.beat = None
                    self._changed()
            case WorkerHeartbeat():
                self._beat(peer, event, at)
            case WorkerModelLoaded():
                self._changed()
            case _:
                pass

    def _beat(self, peer: _Peer, beat: WorkerHeartbeat, at: float) -> None:
        before, peer.beat, peer.heard_at = peer.beat, beat, at
        if before is None or beat.running or beat.done != before.done:
            peer.worked_at = at
        peer.since = {reference: peer.since.get(reference, at) for reference in beat.loaded}
        if before is None or _state(before) != _state(beat):
            self._changed()


async def read_cards(event_log: EventLog, worker_id: str, heartbeat_s: float) -> list[CardView]:
    """Return the cards of the other workers that live, by what they last said: for who asks now and then.

    Raises:
        NoServer: the server does not answer.
    """
    peers = Peers(event_log, worker_id, heartbeat_s, lambda: None)
    await peers.read()
    return peers.cards()


def _state(beat: WorkerHeartbeat) -> tuple[object, ...]:
    return beat.loaded, beat.loading, beat.running > 0


def _card(peer: _Peer, beat: WorkerHeartbeat, now: float) -> CardView:
    held = [Held(name, beat.taken_bytes.get(name, 0), now - peer.since.get(name, now)) for name in beat.loaded]
    return CardView(
        beat.worker_id,
        beat.node_id,
        labels=frozenset(beat.labels),
        total_bytes=beat.device.memory_total_bytes if beat.device else None,
        budget_bytes=beat.budget_bytes,
        most_loaded=beat.max_loaded or 2,
        loaded=tuple(held),
        loading=beat.loading,
        idle=beat.running == 0 and beat.loading is None,
        idle_s=now - peer.worked_at,
        serves=peer.serves,
        pinned=frozenset(beat.pinned),
        revisions=peer.revisions,
    )
