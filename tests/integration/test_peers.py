"""What a worker learns of others by what they say on the log: before it came, and from then on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.registry import Event
from bitinglip.events.subjects import worker_subject
from bitinglip.events.worker import WorkerHeartbeat, WorkerModelsChanged, WorkerStarted, WorkerStopped
from bitinglip.workers.peers import Peers
from bitinglip.workers.view import CardView

Eventually = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


class Watched:
    """The peers that the worker `me` knows of, and how often it was told of a change."""

    def __init__(self, log: EventLog, heartbeat_s: float) -> None:
        self.changes = 0
        self.peers = Peers(log, "me", heartbeat_s, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def card(self, worker_id: str) -> CardView | None:
        return next((card for card in self.peers.cards() if card.worker_id == worker_id), None)


@pytest.fixture
async def watch(log: EventLog) -> AsyncIterator[Callable[[float], Awaitable[Watched]]]:
    opened: list[Watched] = []

    async def start(heartbeat_s: float) -> Watched:
        watched = Watched(log, heartbeat_s)
        await watched.peers.start()
        opened.append(watched)
        return watched

    yield start
    for watched in opened:
        await watched.peers.close()


async def say(log: EventLog, event: type[Event], worker_id: str, **fields: Any) -> None:
    made = event.model_validate(event.example | {"worker_id": worker_id} | fields)
    await log.append(log.fact_append(made, worker_subject(worker_id, event.type.partition(".")[2]), worker_id))


async def test_what_was_said_before_is_known_at_once(
    log: EventLog, watch: Callable[[float], Awaitable[Watched]]
) -> None:
    await say(log, WorkerStarted, "w1", models=[{"kind": "echo", "reference": "org/a"}])
    await say(log, WorkerHeartbeat, "w1", running=0, loaded=["org/a"], taken_bytes={"org/a": 7}, labels=["eu"])
    await say(log, WorkerModelsChanged, "w1", models=[{"kind": "echo", "reference": "org/b", "revision": "c1"}])
    await say(log, WorkerModelsChanged, "w2", models=[{"kind": "echo", "reference": "org/a"}])
    await say(log, WorkerStarted, "w2", models=[{"kind": "echo", "reference": "org/c"}])
    await say(log, WorkerHeartbeat, "w2", running=2, loaded=[])
    await say(log, WorkerHeartbeat, "me")
    await say(log, WorkerHeartbeat, "w3")
    await say(log, WorkerStopped, "w3")
    watched = await watch(10.0)
    one, two = watched.card("w1"), watched.card("w2")
    assert one is not None
    assert two is not None
    assert (one.serves, one.idle, one.labels) == ({"org/b"}, True, {"eu"})
    assert [(held.reference, held.taken_bytes) for held in one.loaded] == [("org/a", 7)]
    assert (one.revisions, two.revisions) == ({"org/b": "c1"}, {})
    assert (two.serves, two.idle) == ({"org/c"}, False)
    assert {card.worker_id for card in watched.peers.cards()} == {"w1", "w2"}


async def test_a_change_is_told_and_a_repeat_is_not(
    log: EventLog, watch: Callable[[float], Awaitable[Watched]], eventually: Eventually
) -> None:
    watched = await watch(10.0)
    await say(log, WorkerHeartbeat, "w1", running=0, done=1, loaded=[])

    async def changed() -> bool:
        return watched.changes == 1

    await eventually(changed)
    await say(log, WorkerHeartbeat, "w1", running=0, done=2, loaded=[])  # nothing that others plan by
    await say(log, WorkerHeartbeat, "w1", running=0, done=2, loaded=["org/a"])

    async def held() -> bool:
        card = watched.card("w1")
        return card is not None and card.holds("org/a")

    await eventually(held)
    assert watched.changes == 2
    await say(log, WorkerStopped, "w1")

    async def gone() -> bool:
        return watched.card("w1") is None

    await eventually(gone)
    assert watched.changes == 3


async def test_one_that_is_silent_for_three_heartbeats_is_gone(
    log: EventLog, watch: Callable[[float], Awaitable[Watched]], eventually: Eventually
) -> None:
    patient, hasty = await watch(60.0), await watch(0.3)
    await say(log, WorkerHeartbeat, "w1")

    async def heard() -> bool:
        return patient.card("w1") is not None

    async def gone() -> bool:
        return hasty.changes > 0 and hasty.card("w1") is None

    await eventually(heard)
    await eventually(gone)
    assert patient.card("w1") is not None
