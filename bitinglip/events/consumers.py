"""What the server tells of the queues' consumers: names and states, page by page."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
from nats.aio.msg import Msg

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.streams import QUEUE, Route

ANSWER_S = 5.0
AGAIN_S = 1.0
"""When what was asked of a cluster is asked again: who has no leader does not answer, nor once it has one."""
READS = ("CONSUMER.LIST.", "CONSUMER.NAMES.", "STREAM.INFO.", "STREAM.NAMES")
"""What may be asked twice."""
ENDING_S = 10.0
"""A pause that runs out within this time is over: that is how one is ended (see `pauses`)."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as the server has it."""

    route: Route
    waiting: int
    """Work messages that nobody was given yet."""
    running: int
    """Work messages that somebody has, or has handed back."""
    handed_out: int
    """Sequence in QUEUE of the last one that somebody was given."""
    acked: int
    """Sequence in QUEUE up to which all of its messages count as acked."""
    deliveries: int
    """How often one of its messages was handed out."""
    asked: bool
    """Whether somebody waits for a message."""
    lease_s: float
    """How long one is somebody's, from each sign of life."""
    paused: bool

    @property
    def model(self) -> str:
        """Reference of its model."""
        return subjects.decode_queue(self.route.queue)[0]


async def queue_names(connection: Connection) -> list[Route]:
    """Return all queues.

    Raises:
        NoServer: the server does not answer.
    """
    return [route async for name in _pages(connection, "NAMES") if (route := _route(name)) is not None]


async def queue_states(connection: Connection, ready: Callable[[], Awaitable[None]] | None = None) -> list[QueueState]:
    """Return all queues with their states; each page of them is asked for when it is `ready`.

    A page takes the server some milliseconds, in which it does nothing else for this connection.

    Raises:
        NoServer: the server does not answer.
    """
    pages = _pages(connection, "LIST", ready)
    return [_state(route, told) async for told in pages if (route := _route(told["name"])) is not None]


async def ask(
    connection: Connection,
    what: str,
    body: dict[str, Any],
    answer_s: float = ANSWER_S,
    again_s: float | None = None,
) -> dict[str, Any]:
    """Send a request to the server's JetStream API, and return its answer, which may take so long.

    A cluster that loses the leader that was asked never answers. `again_s`: how often what may be done twice is asked
    again then; what only reads is in any case.

    Raises:
        NoServer: it does not answer, or refuses.
        NotPermitted: this user may not ask that.
    """
    subject, asked = f"$JS.API.{what}", time.monotonic()
    again_s = AGAIN_S if what.startswith(READS) else again_s or answer_s
    again_s = again_s if connection.clustered else answer_s
    answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()

    def answered(msg: Msg) -> None:
        if not answer.done():
            answer.set_result(msg)

    reply = connection.expect(answered)
    try:
        while not answer.done() and (left_s := asked + answer_s - time.monotonic()) > 0:
            await connection.publish(subject, orjson.dumps(body), reply=reply)
            await asyncio.wait((answer,), timeout=min(again_s, left_s))
    finally:
        connection.forget(reply)
    if not answer.done():
        raise connection.unanswered(f"{what}: no answer in time", asked, subject)
    if status := (answer.result().headers or {}).get("Status"):
        raise NoServer(problem=f"{what}: status {status}")
    told = orjson.loads(answer.result().data)
    if "error" in told:
        raise NoServer(problem=f"{what}: {told['error'].get('description')}")
    return told


async def _pages(
    connection: Connection, what: str, ready: Callable[[], Awaitable[None]] | None = None
) -> AsyncIterator[Any]:
    """Yield what the server tells of each consumer; a page of it is bounded."""
    found, total = 0, 1
    while found < total:
        if ready is not None:
            await ready()
        told = await ask(connection, f"CONSUMER.{what}.{QUEUE}", {"offset": found})
        page = told.get("consumers") or []
        if not page:
            return
        for each in page:
            yield each
        found, total = found + len(page), told.get("total", 0)


def _route(name: str) -> Route | None:
    return Route(*name.split("-", 1)) if subjects.is_consumer_name(name) else None


def _state(route: Route, told: dict[str, Any]) -> QueueState:
    return QueueState(
        route,
        waiting=told.get("num_pending", 0),
        running=told.get("num_ack_pending", 0),
        handed_out=told.get("delivered", {}).get("stream_seq", 0),
        acked=told.get("ack_floor", {}).get("stream_seq", 0),
        deliveries=told.get("delivered", {}).get("consumer_seq", 0),
        asked=told.get("num_waiting", 0) > 0,
        lease_s=told.get("config", {}).get("ack_wait", 0) / 1e9,
        paused=told.get("pause_remaining", 0) > ENDING_S * 1e9,
    )
