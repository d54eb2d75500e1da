"""Deliveries that any one of the gateways reacts to: a durable consumer that all of them share.

The server pushes each message to one of the subscribers of a queue group: nobody asks while there is nothing, and what
is not acked in time goes to another one. How many are on their way at once, the consumer's `max_ack_pending` bounds.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq
from contextlib import suppress
from functools import partial

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig

from bitinglip.errors import BitingLipError, Conflict, Defect, NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.ending import end
from bitinglip.events.streams import PATIENCE_S, led, within

log = logging.getLogger(__name__)

ACK_WAIT_S = 30.0
AT_ONCE = 64
"""Deliveries that all reactors together have in hand."""
AGAIN_S, AGAIN_MOST_S = 1.0, 60.0
"""When a delivery comes back that could not be reacted to: twice as late each time, up to the latter."""

_ACK = b"+ACK"
_NAK = b'-NAK {"delay": %d}'

React = Callable[[str, bytes], Awaitable[None]]
"""What is done about one message (its subject, its payload); done again if it fails."""


class NotYetError(Exception):
    """What a reaction needs is not there yet: its message is to come again."""


class Reactions:
    """One process's share of a durable consumer."""

    def __init__(self, connection: Connection, stream: str, name: str, filters: Seq[str], react: React) -> None:
        self._connection = connection
        self._stream = stream
        self._name = name
        self._filters = list(filters)
        self._react = react
        self._running: set[asyncio.Task[None]] = set()
        self._subscription: Subscription | None = None
        self._forget = connection.on_reconnect(self._reconnected)

    async def start(self) -> None:
        """Make the consumer, or bring it up to date, and begin to react; one that has no leader is waited for.

        Raises:
            IncompatibleStream: it exists with settings that cannot be changed in place.
            NoServer: the server does not answer.
        """
        subject = f"bl.react.{self._name}"
        try:
            self._subscription = await self._connection.client.subscribe(subject, queue=self._name, cb=self._received)
        except NatsError as error:
            raise NoServer(problem=f"the consumer {self._name}: {error or type(error).__name__}") from error
        unanswered = partial(self._connection.unanswered, since=time.monotonic())
        await led(f"The consumer {self._name}", partial(self._ensure, subject), within(PATIENCE_S), unanswered)

    async def close(self) -> None:
        """Take nothing more; what is in hand is let go, and comes to another reactor."""
        self._forget()
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)
        await end(lambda: list(self._running))

    async def _ensure(self, subject: str) -> None:
        config = ConsumerConfig(
            durable_name=self._name,
            deliver_subject=subject,
            deliver_group=self._name,
            filter_subjects=self._filters,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_S,
            max_ack_pending=AT_ONCE,
        )
        await self._connection.js.add_consumer(self._stream, config)

    async def _received(self, msg: Msg) -> None:
        self._begin(self._handle(msg))

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _handle(self, msg: Msg) -> None:
        try:
            answer = await self._answer(msg)
            await self._connection.publish(msg.reply, answer)
        except NoServer as error:
            log.debug("%s: %s comes again: %s", self._name, msg.subject, error)

    async def _answer(self, msg: Msg) -> bytes:
        again_s = min(AGAIN_S * 2 ** min(msg.metadata.num_delivered - 1, 10), AGAIN_MOST_S)
        again = _NAK % int(again_s * 1e9)
        try:
            await self._react(msg.subject, msg.data)
        except (Conflict, NoServer, NotYetError) as error:
            log.debug("%s: %s: %s", self._name, msg.subject, error)
            return again
        except Defect:
            log.exception("%s: %s", self._name, msg.subject)
            return again
        except BitingLipError as error:
            log.warning("%s: %s: %s", self._name, msg.subject, error)
            return again
        except Exception:
            log.exception("%s cannot react to %s", self._name, msg.subject)
            return again
        return _ACK

    def _reconnected(self) -> None:
        """The server may have lost the consumer, with a store that was made anew."""
        self._begin(self._mend())

    async def _mend(self) -> None:
        with suppress(NatsError):
            await self._ensure(f"bl.react.{self._name}")
