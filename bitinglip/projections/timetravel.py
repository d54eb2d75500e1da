"""Going to a moment: which events of each stream it has, and asking for the state then, bounded in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any, TypeVar

from bitinglip.errors import MomentBeforeLog, MomentToCome, PastTimeout
from bitinglip.events.streams import TASKS
from bitinglip.projections.database import Database, Interrupted
from bitinglip.projections.ground import Ground
from bitinglip.projections.moment import Moment, parse
from bitinglip.projections.past import Past, blocks, travelled
from bitinglip.projections.source import Source
from bitinglip.projections.sql import STREAMS

THREADS = 2
END = datetime(9999, 1, 1, tzinfo=UTC)
SKEW = timedelta(seconds=5)
"""By how much the servers' clocks may differ from each other's and from ours."""
LOOK_S = 0.05
"""Seconds between two tries to stop what took too long."""
_T = TypeVar("_T")
Run = Callable[[Callable[[Database], Any]], Awaitable[Any]]
"""Does some work on a thread that is kept for the past, with its cursor."""
Wait = Callable[[str, int], Awaitable[None]]
"""Waits until an event of a stream is applied."""


@dataclass(frozen=True, slots=True)
class _Reach:
    """What the read model has of a stream, up to a time and in all."""

    until: int | None
    last: int
    begins: datetime


class TimeTravel:
    """The past of one gateway's read model."""

    def __init__(self, run: Run, wait: Wait, applied: Callable[[str], int], ground: Ground) -> None:
        self._run = run
        self._wait = wait
        self._applied = applied
        self._clock = ground.log.clock
        self._source: Source = ground.source
        self._timeout_s = ground.settings.query_timeout_s
        self._stopping: set[asyncio.Task[None]] = set()
        self._whole_until = datetime.min.replace(tzinfo=UTC)
        """Up to when all that was stored has been seen to be applied."""

    async def moment(self, text: str) -> Moment:
        """Return the moment that is meant; all that was stored by then is applied when this returns.

        Raises:
            NotAMoment, MomentToCome, MomentBeforeLog: it is none, or none of this log's.
            ProjectionBehind: the read model has not come so far in time.
            NoServer: the log cannot be asked.
        """
        now = self._clock()
        asked = parse(text, now)
        at = await self._time_of(asked, text) if isinstance(asked, int) else asked
        if at > now:
            raise MomentToCome(asked=text, last=_written(now))
        until = at if at < now else END  # what is stored by now may bear a time that is a little later
        reached = await self._reached(until)
        if at > self._whole_until and any(self._may_lack(reached.get(stream)) for stream in STREAMS):
            await self._catch_up(reached)
            self._whole_until = max(self._whole_until, now - SKEW)
            reached = await self._reached(until)
        if all(each.until is None for each in reached.values()):
            begins = min((each.begins for each in reached.values()), default=None)
            raise MomentBeforeLog(asked=text, begins=_written(begins) if begins else "it is empty")
        sequences = {stream: each.until or 0 for stream, each in reached.items()}
        return Moment(at, sequences | ({TASKS: asked} if isinstance(asked, int) else {}))

    async def ask(self, moment: Moment, question: Callable[[Past], _T]) -> _T:
        """Return the answer to a question about the state at a moment.

        Raises:
            PastTimeout: it took longer than a query may run, waiting for a free thread included.
            PastTooLarge: see `Past.counts`.
        """
        journey = _Journey(moment, question)
        running = asyncio.ensure_future(self._run(journey.run))
        try:
            await asyncio.wait([running], timeout=self._timeout_s)
        finally:
            if not running.done():
                stopping = asyncio.create_task(journey.stop(running), name="end of a journey")
                self._stopping.add(stopping)
                stopping.add_done_callback(self._stopping.discard)
        if not running.done():
            raise PastTimeout(limit_s=self._timeout_s)
        return running.result()

    async def _time_of(self, sequence: int, text: str) -> datetime:
        """Return when the last event up to a sequence of TASKS was stored."""
        if sequence > self._applied(TASKS):
            if sequence > (last := await self._source.last(TASKS)):
                raise MomentToCome(asked=text, last=f"event {last} of {TASKS}")
            await self._wait(TASKS, sequence)
        [(at, begins)] = await self._run(lambda cursor: cursor.rows(_block(cursor, "time_of"), {"sequence": sequence}))
        if at is None:
            raise MomentBeforeLog(asked=text, begins=f"its first event is of {_written(begins.replace(tzinfo=UTC))}")
        return at.replace(tzinfo=UTC)

    async def _reached(self, at: datetime) -> dict[str, _Reach]:
        params = {"at": at.replace(tzinfo=None)}
        found = await self._run(lambda cursor: cursor.rows(_block(cursor, "sequences"), params))
        return {stream: _Reach(until, last, begins.replace(tzinfo=UTC)) for stream, until, last, begins in found}

    def _may_lack(self, reached: _Reach | None) -> bool:
        """Tell whether there may be more of a stream by then: nothing that is later has been applied."""
        return reached is None or reached.until == reached.last

    async def _catch_up(self, reached: dict[str, _Reach]) -> None:
        for stream in STREAMS:
            if self._may_lack(reached.get(stream)):
                await self._wait(stream, await self._source.last(stream))


class _Journey:
    """One question on its way through a thread."""

    def __init__(self, moment: Moment, question: Callable[[Past], Any]) -> None:
        self._moment = moment
        self._question = question
        self._halt = Event()
        self._cursor: Database | None = None

    def run(self, cursor: Database) -> Any:
        """Answer it on this cursor; the caller's thread blocks."""
        self._cursor = cursor
        try:
            with travelled(cursor, self._moment, self._look) as past:
                return self._question(past)
        finally:
            self._cursor = None

    async def stop(self, running: asyncio.Future[Any]) -> None:
        """Stop it wherever it is; again and again, because DuckDB forgets an interruption between two statements."""
        self._halt.set()
        while not running.done():
            if (cursor := self._cursor) is not None:
                cursor.interrupt()
            await asyncio.wait([running], timeout=LOOK_S)
        if not running.cancelled():
            running.exception()  # who asked has been answered

    def _look(self) -> None:
        if self._halt.is_set():
            raise Interrupted("stopped")


def _block(cursor: Database, name: str) -> str:
    return blocks(cursor.home)[name]


def _written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
