"""The work queue: pull work messages of a route, keep their lease, ack them or hand them back.

Two kinds of pull request, each with a subscription of its own per route that is made once. One asks for what is there
now and ends at once. The other one stands, for a single message, so that an idle worker hears of work as it comes. A
standing request is never withdrawn: the server may be sending while it hears of that, and what it sends into the void
is lost until its lease ends (seen as 30 s stalls). If one is answered while the worker is busy, the message is handed
back at once, for a worker that is not.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from bitinglip.errors import CorruptEvent, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.direct import get_at
from bitinglip.events.envelope import RawMessage, Recorded, decode, text_of
from bitinglip.events.parser import STATUS
from bitinglip.events.streams import QUEUE, TASKS, Patient, Route, ensure_consumers

log = logging.getLogger(__name__)

PULL_EXPIRES_S = 20.0
"""How long a waiting pull request stands before it is renewed."""
ANSWER_S = 5.0
"""How long the server may take to answer a request that does not wait."""
MENDED_S = 1.0
"""When a cluster's consumer that was not there is asked again, made or not."""

_ACK, _NAK, _IN_PROGRESS = b"+ACK", b"-NAK", b"+WPI"
_DONE = frozenset({b"404", b"408"})
"""No messages; the request has expired."""
_SOURCE = f"Nats-Stream-Source: {TASKS} ".encode()


@dataclass(slots=True)
class Delivery:
    """A work message in our hands: a lease that lasts for the consumer's ack wait, from each sign of life."""

    connection: Connection
    route: Route
    event: Recorded
    """The event that made the task ready to run; its sequence and stream are those in TASKS."""
    delivered: int
    """How often this message was delivered, this time included."""
    reply: str

    async def in_progress(self) -> None:
        """Extend the lease."""
        await self.connection.publish(self.reply, _IN_PROGRESS)

    async def ack(self) -> None:
        """Take the message out of the queue: the task is settled, or comes back by another message."""
        await self.connection.publish(self.reply, _ACK)

    async def nak(self) -> None:
        """Hand the message back, for anybody, now."""
        await self.connection.publish(self.reply, _NAK)


@dataclass(slots=True)
class _Request:
    """The pull requests of one kind on one route: where their messages arrive, and what has come of the last one."""

    route: Route
    inbox: str
    open: bool = False
    missing: bool = False
    """The consumer is not there."""
    unreadable: int = 0
    """Messages that were among what was asked for and are none: the server sends no others for them."""
    dropped: bool = False
    """The route is not ours any more: what the last request still brings is handed back."""


class WorkQueue:
    """Pulls for one worker: `pull` and `wait` are called by one task, one at a time."""

    def __init__(
        self, connection: Connection, lease_s: float, on_arrival: Callable[[Delivery], None] = lambda _: None
    ) -> None:
        """`on_arrival` gets each delivery as it arrives that a pull or a wait will return, or `close`."""
        self._connection = connection
        self._lease_s = lease_s
        self._on_arrival = on_arrival
        self._requests: dict[tuple[Route, bool], _Request] = {}
        self._subscriptions: list[Subscription] = []
        self._arrived: list[Delivery] = []
        self._listening = False
        self._wake = asyncio.Event()
        self._elected = asyncio.Event()
        self._epoch = 0
        self._forget = connection.on_reconnect(self._reconnected)
        self._handing_back: set[asyncio.Task[None]] = set()

    async def ensure(self, routes: Seq[Route], patient: Patient = lambda: False) -> None:
        """Make the routes' consumers; those that have no leader are waited for.

        Raises:
            NoServer, IncompatibleStream, NotPermitted: see there.
        """
        if not self._subscriptions:
            self._subscriptions.append(await self._connection.subscribe(subjects.LEADER_ELECTED, self._moved))
        unanswered = partial(self._connection.unanswered, since=time.monotonic())
        await ensure_consumers(self._connection.js, routes, self._lease_s, patient, unanswered)

    async def pull(self, route: Route, most: int) -> list[Delivery]:
        """Return what is ready on a route now, up to `most`; empty if nothing is.

        What a standing request of another route brings meanwhile comes along.

        Raises:
            NoServer: the server does not answer.
        """
        request = await self._ask(route, {"batch": most, "no_wait": True}, standing=False)
        await self._listen(ANSWER_S, lambda: not request.open or len(self._arrived) + request.unreadable >= most)
        await self._mend(request)
        return self._take()

    async def wait(self, routes: Seq[Route], most: int) -> list[Delivery]:
        """Wait until any of the routes has work, and return it; empty after a while without (call it again).

        Raises:
            NoServer: the server does not answer.
        """
        epoch = self._epoch  # before anything is awaited: an interrupt that comes meanwhile counts
        ask = {"batch": 1, "expires": int(PULL_EXPIRES_S * 1e9)}
        requests = [await self._ask(route, ask, standing=True) for route in routes]

        def over() -> bool:
            return bool(self._arrived) or epoch != self._epoch or not all(request.open for request in requests)

        if not await self._listen(PULL_EXPIRES_S + ANSWER_S, over):
            self._reset()
        for request in requests:
            await self._mend(request)
        return self._take()

    def drop(self, route: Route) -> None:
        """Serve a route no more; the request that stands on it may bring one more message, which is handed back."""
        for standing in (True, False):
            if (request := self._requests.get((route, standing))) is not None:
                request.dropped = True

    def interrupt(self) -> None:
        """Make a `wait` return now."""
        self._epoch += 1
        self._wake.set()

    async def close(self) -> list[Delivery]:
        """Stop listening; returns what arrived too late to be run, for the caller to hand back."""
        self._forget()
        for subscription in self._subscriptions:
            with suppress(NatsError, asyncio.TimeoutError):
                await subscription.drain()
        await asyncio.gather(*self._handing_back)
        return self._take()

    async def _ask(self, route: Route, ask: dict[str, int], *, standing: bool) -> _Request:
        request = self._requests.get((route, standing)) or await self._subscribe(route, standing)
        request.dropped = False
        if not (standing and request.open):
            request.open, request.missing, request.unreadable = True, False, 0
            subject = f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.{route.consumer}"
            await self._connection.publish(subject, orjson.dumps(ask), reply=request.inbox)
        return request

    async def _subscribe(self, route: Route, standing: bool) -> _Request:
        request = _Request(route, self._connection.client.new_inbox())

        def received(subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
            status = _status(headers or b"")
            if status is None:
                request.open = request.open and not standing
                self._delivered(request, text_of(subject), reply.decode(), payload, headers or b"")
            elif status != b"100":
                request.open = False
                request.missing = status not in _DONE
            self._wake.set()

        self._subscriptions.append(await self._connection.subscribe_direct(request.inbox, received))
        self._requests[(route, standing)] = request
        return request

    def _delivered(self, request: _Request, subject: str, reply: str, payload: bytes, headers: bytes) -> None:
        try:
            place = _place(reply)
            event = decode(RawMessage(_origin(headers), place.stored_ns, subject, payload), TASKS)
            delivery = Delivery(self._connection, request.route, event, place.delivered, reply)
        except (CorruptEvent, ValueError, IndexError) as error:
            log.error("a work message cannot be read and stays in the queue: %s", error)  # noqa: TRY400
            request.unreadable += 1
            return
        if self._listening and not request.dropped:
            self._arrived.append(delivery)
            self._on_arrival(delivery)
        else:
            task = asyncio.create_task(_hand_back(delivery))
            self._handing_back.add(task)
            task.add_done_callback(self._handing_back.discard)

    async def _listen(self, timeout_s: float, over: Callable[[], bool]) -> bool:
        """Take what arrives until it is over; false if that took too long."""
        self._listening = True
        try:
            async with asyncio.timeout(timeout_s):
                while not over():
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            log.debug("no answer to a pull")
            return False
        finally:
            self._listening = False
        return True

    async def _mend(self, request: _Request) -> None:
        """Make a consumer again that is not there; one without a leader looks so, and answers to nothing until then.

        Who makes a cluster's consumers may lack a leader as well, and not answer; a moment later this one may be there.
        """
        if not request.missing:
            return
        request.missing = False
        log.info("the consumer %s is not there, or has no leader; making it again", request.route.consumer)
        self._elected.clear()
        making = asyncio.create_task(self.ensure([request.route]))
        elected = asyncio.create_task(self._elected.wait())
        try:
            patience_s = MENDED_S if self._connection.clustered else None
            await asyncio.wait((making, elected), timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                making.result()
        finally:
            making.cancel()
            elected.cancel()

    def _take(self) -> list[Delivery]:
        taken, self._arrived = self._arrived, []
        return taken

    def _reset(self) -> None:
        for request in self._requests.values():
            request.open = False

    async def _moved(self, msg: Msg) -> None:
        """A consumer has a new leader, which knows nothing of what was asked of the old one."""
        for request in self._requests.values():
            if request.route.consumer == msg.subject.rpartition(".")[2]:
                request.open = False
                self._elected.set()
        self._wake.set()

    def _reconnected(self) -> None:
        """The server has forgotten what was asked of it."""
        self._reset()
        self.interrupt()


async def hand_back(connection: Connection, replies: Iterable[str]) -> None:
    """Hand back work messages of a process that is no more, by where it would have acked them.

    Raises:
        NoServer: the connection is away.
    """
    for reply in replies:
        await connection.publish(reply, _NAK)


async def read_held(connection: Connection, replies: Iterable[str]) -> list[Delivery]:
    """Return the work messages that such a process held, as redeliveries; those that are gone are left out.

    Raises:
        NoServer: the server does not answer.
    """
    found = await asyncio.gather(*[_read_held(connection, reply) for reply in replies])
    return [delivery for delivery in found if delivery is not None]


async def _read_held(connection: Connection, reply: str) -> Delivery | None:
    place = _place(reply)
    raw = await get_at(connection, QUEUE, place.sequence)
    if raw is None:
        return None
    lane, _, queue = place.consumer.partition("-")
    return Delivery(connection, Route(lane, queue), decode(raw, QUEUE), place.delivered + 1, reply)


class _Place(NamedTuple):
    """What an ack's subject tells of its message: the sequence is that in QUEUE."""

    consumer: str
    delivered: int
    sequence: int
    stored_ns: int


def _place(reply: str) -> _Place:
    parts = reply.split(".")
    base = 4 if len(parts) == 9 else 6
    return _Place(parts[base - 1], int(parts[base]), int(parts[base + 1]), int(parts[base + 3]))


async def _hand_back(delivery: Delivery) -> None:
    with suppress(NoServer):
        await delivery.nak()


def _status(headers: bytes) -> bytes | None:
    """Return the status of an answer that is no message; none for a message."""
    return headers[len(STATUS) : len(STATUS) + 3] if headers.startswith(STATUS) else None


def _origin(headers: bytes) -> int:
    """Return the sequence in TASKS of a work message, 0 if it has none: `Nats-Stream-Source: TASKS <sequence> ...`."""
    _, found, source = headers.partition(_SOURCE)
    return int(source.split(b" ", 1)[0]) if found else 0
