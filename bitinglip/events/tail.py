"""A stream from a sequence on, in order, without gap or repeat: an ordered push consumer (ADR-17).

The consumer is ephemeral and its state is ours: the last sequence seen. Whatever goes wrong (a gap in the consumer's
own count, heartbeats that stay away, a reconnect) is mended in one way, by a new consumer from the sequence after
that one.

With several filters the server (2.15) looks through all subjects of a block for each message that it sends: 400 µs
instead of 3. So a consumer is given one filter at most. Whole trees of subjects are asked for without one, and what
else lies in the stream, as timers, is dropped here; with other filters what is there already is read in that way, and
then, at the end, where the server has little to look through, what comes is asked for by the filters.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Sequence as Seq
from contextlib import aclosing, suppress
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NoAnswerError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.envelope import Messages
from bitinglip.events.parser import STATUS

log = logging.getLogger(__name__)

HEARTBEAT_S = 2.0
"""After three without one the consumer is made anew: it may have gone with the server that held it."""
BATCH_BYTES = 4 * 2**20
"""Bytes of payload at which a batch is full."""
BUFFER_BATCHES = 2
"""Batches that may wait here before the server is told to hold back (it waits for our flow-control answer)."""
BACKOFF_S = (0.05, 0.25, 1.0)
ANSWERS_S = (6.0, 12.0, 30.0)
"""How long a consumer may take to be made, one try after the other."""
SOON_S, SOON = 1.5, 6
"""The same in a cluster, for so many tries: while that has no leader nobody answers, nor once it has one."""
IsOver = Callable[[int], Awaitable[bool]]
"""Tells whether a tail that has come to a sequence, and is quiet, is to end."""


class _BrokenError(Exception):
    """The consumer lost its thread; the text says how."""


async def tail(
    connection: Connection, stream: str, after: int, filters: Seq[str], most: int, over: IsOver | None = None
) -> AsyncGenerator[Messages, None]:
    """Yield the stream's messages after a sequence, as they arrive, 1 to `most` at a time.

    `over` is asked whenever nothing has come for a heartbeat, with the last sequence; without it the tail never ends.
    """
    failures, history = 0, True
    while True:
        consumer = _Consumer(connection, stream, _Wanted.of(filters, history=history), most)
        try:
            async with aclosing(consumer.batches(after, _patience_s(connection, failures))) as batches:
                async for batch in batches:
                    failures = 0
                    if not batch:
                        if over is not None and await over(after):
                            return
                        continue
                    after = batch.sequences[-1]
                    yield batch
            after, history = max(after, consumer.seen), False
        except (_BrokenError, NoServer, NatsError) as error:
            log.debug("the tail of %s starts again after %d: %s", stream, after, error)
            waited = isinstance(error, NoAnswerError)
            await asyncio.sleep(BACKOFF_S[0 if waited else min(failures, len(BACKOFF_S) - 1)])
            failures, history = failures + 1, True


def _patience_s(connection: Connection, failures: int) -> float:
    soon = SOON if connection.clustered else 0
    return SOON_S if failures < soon else ANSWERS_S[min(failures - soon, len(ANSWERS_S) - 1)]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the server is asked for, and which of it is passed on."""

    filters: Seq[str]
    prefixes: tuple[bytes, ...] = (b"",)
    pattern: re.Pattern[bytes] | None = None
    for_now: bool = False
    """Until everything is read that is there already."""

    @classmethod
    def of(cls, filters: Seq[str], *, history: bool) -> _Wanted:
        trees = [each.removesuffix(">").encode() for each in filters if each.endswith(".>") and "*" not in each]
        if len(filters) > 1 and len(trees) == len(filters):
            return cls((), prefixes=tuple(trees))
        if len(filters) > 1 and history:
            return cls((), pattern=_pattern(filters), for_now=True)
        return cls(filters)


class _Consumer:
    """One ephemeral consumer, from its making to its first trouble."""

    def __init__(self, connection: Connection, stream: str, wanted: _Wanted, most: int) -> None:
        self.seen = 0
        """Last sequence that came, passed on or not, of a consumer that is there for now."""
        self._connection = connection
        self._stream = stream
        self._wanted = wanted
        self._prefixes, self._pattern = wanted.prefixes, wanted.pattern
        self._most = most
        self._arriving = Messages()
        self._arrived: deque[Messages] = deque()
        self._count = 0
        self._broken: str | None = None
        self._through = False
        self._quiet = False
        """Whether a heartbeat has told that there is nothing more for now."""
        self._wake = asyncio.Event()
        self._owed: str | None = None
        self._answering: asyncio.Future[None] | None = None

    async def batches(self, after: int, answer_s: float) -> AsyncGenerator[Messages, None]:
        """Yield what comes after a sequence, and nothing (an empty batch) at a heartbeat.

        A consumer that is there for now ends when nothing is left.

        Raises:
            NatsError: it could not be made within `answer_s`.
        """
        inbox = self._connection.client.new_inbox()
        forget = self._connection.on_reconnect(lambda: self._break("reconnected"))
        subscription = await self._connection.subscribe_direct(inbox, self._received)
        name: str | None = None
        try:
            config = self._config(inbox, after)
            made = await cancellable(self._connection.js.add_consumer(self._stream, config=config, timeout=answer_s))
            name = made.name
            if self._wanted.for_now and not made.num_pending:
                self._through = True
            while (batch := await self._next()) is not None:
                yield batch
        finally:
            forget()
            await self._connection.unsubscribe(subscription)
            if name is not None:
                await self._forget(name)

    async def _forget(self, name: str) -> None:
        """Have the server delete it; nobody waits for that, as it would end by itself a while later."""
        with suppress(NoServer):
            reply = self._connection.expect(lambda _: None)
            self._connection.forget(reply)
            await self._connection.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}", b"", reply=reply)

    def _config(self, inbox: str, after: int) -> ConsumerConfig:
        filters = list(self._wanted.filters)
        return ConsumerConfig(
            deliver_subject=inbox,
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=after + 1,
            # One in a list may be looked for as several are (nats-server#7852).
            filter_subject=filters[0] if len(filters) == 1 else None,
            filter_subjects=filters if len(filters) > 1 else None,
            ack_policy=AckPolicy.NONE,
            max_deliver=1,
            flow_control=True,
            rate_limit_bps=self._connection.reading_bps,
            idle_heartbeat=HEARTBEAT_S,
            inactive_threshold=30.0,
            mem_storage=True,
            num_replicas=1,
        )

    async def _next(self) -> Messages | None:
        while not self._waiting():
            if self._broken is not None:
                raise _BrokenError(self._broken)
            if self._through:
                return None
            if self._quiet:
                self._quiet = False
                return Messages()
            self._wake.clear()
            try:
                async with asyncio.timeout(3 * HEARTBEAT_S):
                    await self._wake.wait()
            except TimeoutError:
                self._break("no heartbeat")
        if not self._arrived:
            self._end_batch()
        batch = self._arrived.popleft()
        self._go_on()
        return batch

    def _waiting(self) -> int:
        return len(self._arriving) + self._most * len(self._arrived)

    def _end_batch(self) -> None:
        self._arrived.append(self._arriving)
        self._arriving = Messages()

    def _received(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        if headers is not None and not payload and headers.startswith(STATUS):
            self._control(reply.decode(), headers.decode())
            return
        parts = reply.split(b".")
        base = 5 if len(parts) == 9 else 7
        self._count = count = self._count + 1
        if int(parts[base + 1]) != count:
            self._break("a gap in the consumer's count")
        elif self._broken is not None or not (
            self._pattern is None or self._is_wanted(subject, parts[base], parts[base + 3])
        ):
            return
        elif subject.startswith(self._prefixes):
            arriving = self._arriving
            size_bytes = arriving.add(int(parts[base]), int(parts[base + 2]), subject, payload)
            messages = len(arriving.subjects)
            if messages == 1:
                self._wake.set()
            elif messages >= self._most or size_bytes >= BATCH_BYTES:
                self._end_batch()

    def _is_wanted(self, subject: bytes, sequence: bytes, left: bytes) -> bool:
        self.seen = int(sequence)
        if left == b"0":
            self._through = True
            self._wake.set()
        return self._pattern is not None and self._pattern.fullmatch(subject) is not None

    def _control(self, reply: str, text: str) -> None:
        status, _, lines = text.removeprefix(STATUS.decode()).partition("\r\n")
        headers = dict(line.split(": ", 1) for line in lines.split("\r\n") if ": " in line)
        if not status.startswith("100"):
            self._break(f"status {status}")
        elif answer_to := reply or headers.get("Nats-Consumer-Stalled"):
            self._owed = answer_to
            self._go_on()
        elif int(headers.get("Nats-Last-Consumer", self._count)) != self._count:
            self._break("a gap before a heartbeat")
        else:
            self._quiet = True
            self._wake.set()

    def _go_on(self) -> None:
        """Let the server send more, if there is room: it has asked, and holds back until it is answered."""
        if self._owed is None or self._waiting() >= self._most * BUFFER_BATCHES:
            return
        self._answering = asyncio.ensure_future(self._answer(self._owed))
        self._owed = None

    async def _answer(self, subject: str) -> None:
        with suppress(NoServer):
            await self._connection.publish(subject, b"")

    def _break(self, why: str) -> None:
        self._broken = self._broken or why
        self._wake.set()


def _pattern(filters: Seq[str]) -> re.Pattern[bytes]:
    """Return what subjects look like that one of the filters stands for."""
    each = (re.escape(one).replace(r"\*", "[^.]+").replace(r"\.>", r"\..+").replace(">", ".+") for one in filters)
    return re.compile("|".join(each).encode())
