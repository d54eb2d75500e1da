"""Events on their way into a stream, each to be stored only if nobody else's came before: send, hear, send again."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import orjson
from nats.aio.msg import Msg

from bitinglip.errors import (
    AppendRefused,
    BitingLipError,
    Conflict,
    NoServer,
    NotPermitted,
    PayloadTooLarge,
    StreamFull,
)
from bitinglip.events.connection import Connection
from bitinglip.events.direct import get_after, get_last
from bitinglip.events.streams import FULL_CODES, LEDGER, MODELS, SCHEDULES, TASKS, WORKERS
from bitinglip.ids import Sequence

CONFLICT_CODES = frozenset({10071, 10164})
TOO_LARGE_CODES = frozenset({10054, 10055})

SOON_S, AGAIN_S = 0.005, 0.1
"""Pauses until an append is sent again that came to nothing: the first, twice the one before, at most the last."""
CHUNK = 32
"""Appends that are written to the socket at a time."""

_STREAMS = {"task": TASKS, "timer": TASKS, "due": TASKS, "worker": WORKERS, "node": WORKERS, "model": MODELS} | {
    "batch": TASKS,
    "schedule": SCHEDULES,
    "alarm": SCHEDULES,
    "ledger": LEDGER,
    "query": LEDGER,
}


@dataclass(frozen=True, slots=True)
class Append:
    """One event on its way into a stream."""

    subject: str
    id: str
    payload: bytes
    headers: dict[str, str]
    scope: str
    """Filter over which `expected` holds."""
    expected: int | None

    @property
    def conflict(self) -> Conflict:
        """The error if another writer was faster."""
        return Conflict(subject=self.scope, expected=self.expected or 0)

    @property
    def stream(self) -> str:
        """Where it goes."""
        return _STREAMS[self.scope.split(".")[1]]


class Appender:
    """Sends appends to the server, so many at a time, until it has them or says why not."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._timeout_s = connection.settings.append_timeout_s
        self._slots = asyncio.Semaphore(connection.settings.in_flight)

    async def append_all(self, appends: Seq[Append]) -> list[Sequence | BitingLipError]:
        """Store many events, all in flight at once (bounded); returns each one's sequence or error, in order."""
        begun = time.monotonic()
        waiting: list[asyncio.Future[Sequence] | BitingLipError] = []
        for count, append in enumerate(appends, 1):
            await self._slots.acquire()
            waiting.append(await self._send(append))
            if count % CHUNK == 0:
                await asyncio.sleep(0)  # let these go out while the next ones are made
        until = time.monotonic() + self._timeout_s
        return [await self._settle(append, sent, begun, until) for append, sent in zip(appends, waiting, strict=True)]

    async def _send(self, append: Append) -> asyncio.Future[Sequence] | BitingLipError:
        acked: asyncio.Future[Sequence] = asyncio.get_running_loop().create_future()

        def answered(msg: Msg) -> None:
            if not acked.done():
                _read_ack(msg, append, acked)

        reply = self._connection.expect(answered)

        def done(_: object) -> None:
            self._connection.forget(reply)
            self._slots.release()

        acked.add_done_callback(done)
        try:
            await self._connection.publish(append.subject, append.payload, append.headers, reply)
        except (NoServer, PayloadTooLarge) as error:
            acked.cancel()
            return error
        return acked

    async def _settle(
        self, append: Append, sent: asyncio.Future[Sequence] | BitingLipError, begun: float, until: float
    ) -> Sequence | BitingLipError:
        """Return what became of an append, sent at `begun` at the earliest, `until` a time; by the monotonic clock."""
        patience_s = self._timeout_s / 4
        pause_s, retried = min(SOON_S, patience_s), False
        while True:
            left_s = max(0.0, until - time.monotonic())
            outcome = sent if isinstance(sent, BitingLipError) else await _outcome(sent, min(patience_s, left_s))
            if isinstance(outcome, Conflict):
                outcome = await self._look_into(outcome, append, until, retried=retried)
            if isinstance(outcome, NoServer):
                outcome = self._connection.unanswered(outcome.problem, begun, append.subject)
            if not isinstance(outcome, NoServer) or isinstance(outcome, NotPermitted) or time.monotonic() >= until:
                return outcome
            retried = retried or not isinstance(sent, BitingLipError)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, AGAIN_S)
            await self._slots.acquire()
            sent = await self._send(append)

    async def _look_into(
        self, conflict: Conflict, append: Append, until: float, *, retried: bool
    ) -> Sequence | Conflict | NoServer:
        """Return what is behind a conflict: what was sent twice may be in conflict with itself."""
        if self._connection.clustered and time.monotonic() >= until:
            return NoServer(problem="a conflict, and no time left to see with what")
        try:
            if retried and (sequence := await self._find(append)) is not None:
                return sequence
            await check_conflict(self._connection, [append])
        except NoServer as error:
            return error
        return conflict

    async def _find(self, append: Append) -> Sequence | None:
        """Return where an append of ours is that was sent twice."""
        for message in await get_after(self._connection, append.stream, append.scope, append.expected or 0):
            if orjson.loads(message.payload).get("id") == append.id:
                return Sequence(message.sequence)
        return None


async def check_conflict(connection: Connection, appends: Iterable[Append]) -> None:
    """See to it that what appends are said to be in conflict with is in the log.

    A cluster refuses also what would have to give way to what is on its way to all servers. That may never arrive, if
    their leader is struck: then neither is in the log.

    Raises:
        NoServer: it is not in the log; what was refused can be tried again.
    """
    if not connection.clustered:
        return
    for append in appends:
        last = await get_last(connection, append.stream, append.scope)
        if append.expected is not None and (0 if last is None else last.sequence) != append.expected:
            return
    raise NoServer(problem="another event of the same task, batch or schedule is on its way")


async def _outcome(acked: asyncio.Future[Sequence], timeout_s: float) -> Sequence | BitingLipError:
    alarm = None if acked.done() else asyncio.get_running_loop().call_later(timeout_s, _give_up, acked)
    try:
        return await acked
    except BitingLipError as error:
        return error
    finally:
        if alarm is not None:
            alarm.cancel()


def _give_up(acked: asyncio.Future[Sequence]) -> None:
    if not acked.done():
        acked.set_exception(NoServer(problem="no ack in time"))


def _read_ack(msg: Msg, append: Append, acked: asyncio.Future[Sequence]) -> None:
    if not msg.data:
        acked.set_exception(NoServer(problem="no stream takes this subject right now"))
        return
    answer: dict[str, Any] = orjson.loads(msg.data)
    error = answer.get("error")
    if error is None:
        acked.set_result(Sequence(answer["seq"]))
    else:
        acked.set_exception(refusal(error, append))


def refusal(error: dict[str, Any], append: Append) -> BitingLipError:
    """Return what an ack that is an error means."""
    code, text = error.get("err_code", 0), str(error.get("description", error))
    if code in CONFLICT_CODES:
        return append.conflict
    if code in FULL_CODES:
        return StreamFull(problem=text)
    if code in TOO_LARGE_CODES:
        return PayloadTooLarge(what="The event", limit_bytes=len(append.payload))
    if error.get("code") == 503:
        return NoServer(problem=text)
    return AppendRefused(problem=f"{text} (code {code})", subject=append.subject)
