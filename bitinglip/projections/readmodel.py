"""The read model as the gateway sees it: questions, strangers' SQL, waiting for one's own writes, the rebuild."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitinglip.errors import NoServer, ProjectionBehind
from bitinglip.events.feed import TaskFeed
from bitinglip.events.log import EventLog
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database
from bitinglip.projections.generation import Generation, open_generation
from bitinglip.projections.projector import STREAMS, end, last_event
from bitinglip.projections.query import Queries, TaskFilter
from bitinglip.projections.rebuild import rebuild, sweep
from bitinglip.projections.rows import ColumnSchema, ModelRow, TableSchema, TaskRow, WorkerRow
from bitinglip.projections.sandbox import Sandbox, Table
from bitinglip.projections.timetravel import TimeTravel
from bitinglip.settings import Projections

__all__ = [
    "ColumnSchema",
    "Lag",
    "ModelRow",
    "ReadModel",
    "Table",
    "TableSchema",
    "TaskFilter",
    "TaskRow",
    "WorkerRow",
]
log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 5.0
"""Patience with a rebuild that is to end: it closes its file."""
RETRY_S = 1.0
"""Seconds between two tries to open the rebuilt file while the log is away."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the read model is behind in one stream."""

    stream: str
    applied: int
    """Sequence of the last applied event."""
    last: int
    """Sequence of the last event in the stream."""


class ReadModel:
    """The read model of one gateway."""

    def __init__(
        self, settings: Projections, log: EventLog, checkpoints: Checkpoints, feed: TaskFeed, current: Generation
    ) -> None:
        self.feed = feed
        """What it reads of TASKS, for whoever follows a task."""
        self.queries = Queries(self._read)
        self.sandbox = Sandbox(self._run_stranger)
        self.past = TimeTravel(self._travel, self.wait, self.applied, log, settings.query_timeout_s)
        self._settings = settings
        self._log = log
        self._checkpoints = checkpoints
        self._current = current
        self._rebuild: asyncio.Task[None] | None = None
        self._serving = asyncio.Event()
        self._serving.set()

    @classmethod
    async def open(cls, settings: Projections, path: Path, log: EventLog) -> ReadModel:
        """Open the file, or make it, and begin to catch up in the background.

        Raises:
            ProjectionFileBusy: another process has the file open.
            NoServer: the log cannot be asked.
        """
        checkpoints, feed = Checkpoints(), TaskFeed()
        await asyncio.to_thread(sweep, path)
        return cls(settings, log, checkpoints, feed, await open_generation(path, settings, log, checkpoints, feed))

    async def close(self) -> None:
        """Stop and close the file; a rebuild that runs is given up."""
        await end(lambda: [self._rebuild], CANCEL_AGAIN_S)
        await self._current.close()

    @property
    def ready(self) -> bool:
        """Whether it has caught up with the log once."""
        return self._current.projector.caught_up.is_set()

    async def wait_ready(self) -> None:
        """Wait until it has caught up with the log once."""
        await self._current.projector.wait_caught_up()

    def applied(self, stream: str) -> int:
        """Return the sequence of the last applied event of a stream."""
        return self._checkpoints.applied(stream)

    async def wait(self, stream: str, sequence: int) -> None:
        """Wait until an event is applied, for at most `read_wait_s`.

        Raises:
            ProjectionBehind: it was not in time.
        """
        await self._checkpoints.wait(stream, sequence, self._settings.read_wait_s)

    async def lag(self) -> list[Lag]:
        """Return how far each stream is applied, and how far it goes.

        Raises:
            NoServer: the log cannot be asked.
        """
        return [Lag(stream, self.applied(stream), await last_event(self._log, stream)) for stream in STREAMS]

    async def schema(self) -> list[TableSchema]:
        """Return the tables that a query can read, each column with its type and meaning."""
        return await self.queries.schema()

    async def rebuild(self) -> None:
        """Make the file anew from the log while the old one serves, and swap it in; a rebuild that runs is joined.

        Raises:
            NoServer: the log cannot be asked; the old file serves on.
        """
        if self._rebuild is None or self._rebuild.done():
            path = self._current.path
            self._rebuild = asyncio.create_task(rebuild(path, self._settings, self._log, self._swap), name="rebuild")
        await asyncio.shield(self._rebuild)

    async def _swap(self, replace: Callable[[], None]) -> None:
        """Close the file, put another in its place, and open that; queries wait until it is as far as the old one."""
        self._serving.clear()
        before = {stream: self.applied(stream) for stream in STREAMS}
        await self._current.close()
        await asyncio.to_thread(replace)
        self._current = await self._open_patiently(self._current.path)
        for stream, sequence in before.items():
            with suppress(ProjectionBehind):
                await self.wait(stream, sequence)
        self._serving.set()

    async def _open_patiently(self, path: Path) -> Generation:
        while True:
            try:
                return await open_generation(path, self._settings, self._log, self._checkpoints, self.feed)
            except NoServer as error:
                log.warning("the rebuilt read model waits for the log: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _read(self, work: Callable[[Database], _T]) -> _T:
        await self._serving.wait()
        return await self._current.readers.run(work)

    async def _run_stranger(self, work: Callable[[Database], Table]) -> Table:
        await self._serving.wait()
        return await self._current.strangers.run(work)

    async def _travel(self, work: Callable[[Database], _T]) -> _T:
        await self._serving.wait()
        return await self._current.travellers.run(work)
