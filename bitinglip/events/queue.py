"""The work queue: pull work messages of a route, keep their lease, ack them or hand them back.

Each pull request has an inbox of its own, so that it can be withdrawn: once interest in the inbox is gone the server gives
the work to somebody else. What it had sent before that is not lost, it is the next thing that `wait` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence as Seq
from contextlib import suppress
from dataclasses import dataclass, field

import orjson
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from bitinglip.errors import CorruptEvent, NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.envelope import RawMessage, Recorded, decode
from bitinglip.events.streams import QUEUE, TASKS, Route, ensure_consumer

log = logging.getLogger(__name__)

PULL_EXPIRES_S = 20.0
"""How long a waiting pull request stands before it is renewed."""
ANSWER_S = 5.0
"""How long the server may take to answer a request that does not wait."""

_ACK, _NAK, _IN_PROGRESS = b"+ACK", b"-NAK", b"+WPI"
_DONE = frozenset({"404", "408"})
"""No messages; the request has expired."""


@dataclass(slots=True)
class Delivery:
    """A work message in our hands: a lease that lasts until its consumer's ack wait, and again from each sign of life."""

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
class _Pull:
    """One pull request and what has come of it."""

    route: Route
    inbox: str
    subscription: Subscription | None = None
    deliveries: list[Delivery] = field(default_factory=list[Delivery])
    ended: bool = False
    missing: bool = False
    """The consumer is not there."""


class WorkQueue:
    """Pulls for one worker."""

    def __init__(self, connection: Connection, lease_s: float) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._wake = asyncio.Event()
        self._late: list[Delivery] = []
        self._withdrawals: set[asyncio.Task[None]] = set()
        self._forget = connection.on_reconnect(self._reconnected)
        self._epoch = 0

    async def ensure(self, routes: Seq[Route]) -> None:
        """Make the routes' consumers.

        Raises:
            NoServer, IncompatibleStream: see there.
        """
        for route in routes:
            await ensure_consumer(self._connection.js, route, self._lease_s)

    async def pull(self, route: Route, most: int) -> list[Delivery]:
        """Return what is ready on a route now, up to `most`; empty if nothing is.

        Raises:
            NoServer: the server does not answer.
        """
        if self._late:
            return self._take_late(most)
        pull = await self._request(route, {"batch": most, "no_wait": True})
        try:
            async with asyncio.timeout(ANSWER_S):
                while not pull.ended and len(pull.deliveries) < most:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            log.debug("no answer to a pull on %s", route.consumer)
        found, pull.deliveries = pull.deliveries, []
        self._withdraw(pull)
        await self._mend(pull)
        return found

    async def wait(self, routes: Seq[Route], most: int) -> list[Delivery]:
        """Wait until any of the routes has work, and return it; empty after a while without (call it again).

        What is returned may come from several routes, in the routes' order.

        Raises:
            NoServer: the server does not answer.
        """
        if self._late:
            return self._take_late(most)
        epoch = self._epoch
        request = {"batch": most, "expires": int(PULL_EXPIRES_S * 1e9)}
        pulls = [await self._request(route, request) for route in routes]
        try:
            async with asyncio.timeout(PULL_EXPIRES_S + ANSWER_S):
                while not any(pull.deliveries or pull.ended for pull in pulls) and epoch == self._epoch:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            log.debug("no answer to the pulls")
        finally:
            found = [delivery for pull in pulls for delivery in pull.deliveries]
            for pull in pulls:
                pull.deliveries = []
                self._withdraw(pull)
        for pull in pulls:
            await self._mend(pull)
        self._late += found[most:]
        return found[:most]

    def interrupt(self) -> None:
        """Make a `wait` return now."""
        self._reconnected()

    async def close(self) -> list[Delivery]:
        """Withdraw everything; returns what came too late to be run, for the caller to hand back."""
        self._forget()
        if self._withdrawals:
            await asyncio.wait(self._withdrawals, timeout=ANSWER_S)
        late, self._late = self._late, []
        return late

    async def _request(self, route: Route, request: dict[str, object]) -> _Pull:
        pull = _Pull(route, self._connection.client.new_inbox())

        async def received(msg: Msg) -> None:
            self._received(pull, msg)

        pull.subscription = await self._connection.subscribe(pull.inbox, received)
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.{route.consumer}"
        await self._connection.publish(subject, orjson.dumps(request), reply=pull.inbox)
        return pull

    def _received(self, pull: _Pull, msg: Msg) -> None:
        status = (msg.headers or {}).get("Status")
        if status is None:
            self._delivered(pull, msg)
        elif status != "100":
            pull.ended = True
            pull.missing = status not in _DONE
        self._wake.set()

    def _delivered(self, pull: _Pull, msg: Msg) -> None:
        try:
            delivery = _read(self._connection, pull.route, msg)
        except CorruptEvent as error:
            log.error("a work message cannot be read and stays in the queue: %s", error)  # noqa: TRY400
            return
        if pull.subscription is None:  # withdrawn meanwhile
            self._late.append(delivery)
        else:
            pull.deliveries.append(delivery)

    def _withdraw(self, pull: _Pull) -> None:
        subscription, pull.subscription = pull.subscription, None
        if subscription is not None:
            task = asyncio.create_task(self._drain(subscription))
            self._withdrawals.add(task)
            task.add_done_callback(self._withdrawals.discard)

    async def _drain(self, subscription: Subscription) -> None:
        """Withdraw interest, and stay to take what the server sent before it heard of that."""
        with suppress(NatsError, OSError, asyncio.TimeoutError):
            await subscription.drain()
        if self._late:
            self._wake.set()

    async def _mend(self, pull: _Pull) -> None:
        if pull.missing:
            log.info("the consumer %s is not there; making it again", pull.route.consumer)
            await self.ensure([pull.route])

    def _take_late(self, most: int) -> list[Delivery]:
        taken, self._late = self._late[:most], self._late[most:]
        return taken

    def _reconnected(self) -> None:
        self._epoch += 1
        self._wake.set()


def _read(connection: Connection, route: Route, msg: Msg) -> Delivery:
    """Read a work message. Its headers tell its origin: `Nats-Stream-Source: TASKS <sequence> <filters...>`."""
    source = (msg.headers or {}).get("Nats-Stream-Source", "")
    parts = msg.reply.split(".")
    base = 4 if len(parts) == 9 else 6
    sequence = int(source.split(" ")[1]) if source.startswith(TASKS) else 0
    raw = RawMessage(sequence, int(parts[base + 3]), msg.subject, msg.data)
    return Delivery(connection, route, decode(raw, TASKS), int(parts[base]), msg.reply)


__all__ = ["Delivery", "NoServer", "Route", "WorkQueue"]
