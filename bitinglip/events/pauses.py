"""Pauses of a model's queues. The log says what is paused; the server's pause of a consumer makes it so.

A paused consumer hands out nothing, to whatever stands or comes; workers need not know. It outlasts a restart of the
server, and a worker that declares the consumer again (tried on 2.15.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from bitinglip.errors import CorruptEvent, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import ask, queue_states
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import decode
from bitinglip.events.model import QueuePaused, QueueResumed
from bitinglip.events.registry import Event
from bitinglip.events.streams import MODELS, QUEUE, Route
from bitinglip.events.task import LANES

log = logging.getLogger(__name__)

FOR_EVER = datetime(2100, 1, 1, tzinfo=UTC)
SETTLE_S = 10.0
"""How long all queues of a model may take to be paused or resumed."""
MOMENTS_S = (0.05, 1.0, 5.0)
"""In how many seconds a pause runs out that is ended; longer each time that the server hears of it too late."""


def lanes_paused(events: Iterable[Event]) -> frozenset[str]:
    """Return the lanes in which a model is paused, by its events in their order."""
    paused: frozenset[str] = frozenset()
    for event in events:
        match event:
            case QueuePaused():
                paused |= lanes_of(event.lane)
            case QueueResumed():
                paused -= lanes_of(event.lane)
            case _:
                pass
    return paused


def lanes_of(lane: str | None) -> frozenset[str]:
    """Return the lanes that are meant: the one, or all."""
    return frozenset(LANES) if lane is None else frozenset({lane})


async def paused_lanes(connection: Connection, model: str) -> frozenset[str]:
    """Return the lanes in which the log says that a model is paused.

    Raises:
        NoServer: the server does not answer.
    """
    events: list[Event] = []
    for message in await get_after(connection, MODELS, subjects.model_events(model), 0):
        try:
            events.append(decode(message, MODELS).event)
        except CorruptEvent as error:
            log.error("passed over: %s", error)  # noqa: TRY400  (the message says where)
    return lanes_paused(events)


async def settle_pauses(connection: Connection, model: str) -> frozenset[str]:
    """Bring all queues of a model to what the log says, also while others change that; returns the paused lanes.

    Raises:
        NoServer: the server does not answer, or does not do it in time.
    """
    try:
        async with asyncio.timeout(SETTLE_S):
            while True:
                lanes = await paused_lanes(connection, model)
                states = [state for state in await queue_states(connection) if state.model == model]
                wrong = [state for state in states if state.paused != (state.route.lane in lanes)]
                if not wrong:
                    return lanes
                for state in wrong:
                    await (_resume if state.paused else _pause)(connection, state.route)
    except TimeoutError as error:
        raise NoServer(problem=f"the pause of {model} has not come about") from error


async def _resume(connection: Connection, route: Route) -> None:
    """End a pause by letting it run out in a moment.

    The server wakes the pull requests that stand when a pause runs out, and not when it is taken back: then they would
    get nothing until the next message comes (tried on 2.15.1). The moment is by the server's own clock.
    """
    for moment_s in MOMENTS_S:
        told = await _pause(connection, route)
        now = FOR_EVER - timedelta(microseconds=told.get("pause_remaining", 0) // 1000)
        told = await _pause(connection, route, now + timedelta(seconds=moment_s))
        if told.get("paused"):
            return


async def _pause(connection: Connection, route: Route, until: datetime = FOR_EVER) -> dict[str, Any]:
    body = {"pause_until": until.isoformat()}
    return await ask(connection, f"CONSUMER.PAUSE.{QUEUE}.{route.consumer}", body)
