"""The read model as the gateway sees it: questions, strangers' SQL, waiting for one's own writes, the rebuild."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bitinglip.errors import (
    NoServer,
    ProjectionBehind,
    ProjectionBuilding,
    ProjectionFileRefused,
    QueryRefused,
    ReadModelBroken,
)
from bitinglip.events.archive import trimmed_to
from bitinglip.events.ending import end
from bitinglip.events.feed import TaskFeed
from bitinglip.events.ledger import LedgerSnapshot
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.projections import snapshot, sql
from bitinglip.projections.building import VersionState
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database, NoTableError, WriteError
from bitinglip.projections.generation import Generation, open_generation
from bitinglip.projections.ground import Ground
from bitinglip.projections.mending import RETRY_S, Mender
from bitinglip.projections.projector import STREAMS
from bitinglip.projections.query import Queries, TaskFilter
from bitinglip.projections.rebuild import rebuild, sweep
from bitinglip.projections.rows import ColumnSchema, ModelRow, TableSchema, TaskRow, WorkerRow
from bitinglip.projections.sandbox import Sandbox, Table
from bitinglip.projections.sql import Catalogue
from bitinglip.projections.timetravel import TimeTravel
from bitinglip.projections.vetting import NO_TABLE
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
    "VersionState",
    "WorkerRow",
]
log = logging.getLogger(__name__)

CANCEL_AGAIN_S = 5.0
"""Patience with a rebuild that is to end: it closes its file."""
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

    def __init__(self, ground: Ground, path: Path) -> None:
        self.feed = TaskFeed()
        """What it reads of TASKS, for whoever follows a task."""
        self.queries = Queries(self._read, self._settle)
        self.sandbox = Sandbox(self._run_stranger, self._settle)
        self.past = TimeTravel(self._travel, self.wait, self.applied, ground)
        self._ground = ground
        self._path = path
        self._checkpoints = Checkpoints()
        self._current: Generation
        self._rebuild: asyncio.Task[None] | None = None
        self._mender = Mender(self.rebuild, self._open_again)
        self._serving = asyncio.Event()
        self._serving.set()

    @classmethod
    async def open(
        cls, settings: Projections, path: Path, log: EventLog, catalogue: Catalogue = sql.CATALOGUE
    ) -> ReadModel:
        """Open the file, or make it, and begin to catch up in the background.

        Raises:
            ProjectionFileBusy: another process has the file open.
            ProjectionFileForeign: it is a database of something else.
            ProjectionFileRefused: it cannot be read or written.
            NoServer: the log cannot be asked.
        """
        await asyncio.to_thread(sweep, path)
        made = cls(Ground.of(settings, log, catalogue), path)
        await snapshot.fetch(path, made._ground)
        made._current = await made._open_once()
        return made

    async def close(self) -> None:
        """Stop and close the file; a rebuild that runs is given up."""
        await end(lambda: [self._mender.task, self._rebuild], CANCEL_AGAIN_S)
        await self._current.close()

    @property
    def ready(self) -> bool:
        """Whether it has caught up with the log once."""
        return self._current.projector.caught_up.is_set()

    async def wait_ready(self) -> None:
        """Wait until it has caught up with the log once."""
        while True:
            waiting = asyncio.ensure_future(self._current.projector.wait_caught_up())
            try:
                await asyncio.wait([waiting])
            finally:
                waiting.cancel()
            replacing = [task for task in (self._mender.task, self._rebuild) if task is not None and not task.done()]
            if not waiting.cancelled() or not replacing:
                return await waiting
            await asyncio.wait(replacing)

    def applied(self, stream: str) -> int:
        """Return the sequence of the last applied event of a stream."""
        return self._checkpoints.applied(stream)

    async def wait(self, stream: str, sequence: int) -> None:
        """Wait until an event is applied, for at most `read_wait_s`.

        Raises:
            ProjectionBehind: it was not in time.
        """
        await self._checkpoints.wait(stream, sequence, self._ground.settings.read_wait_s)

    async def drop_archived(self, stream: str, up_to: int) -> None:
        """Let a stream's events up to a sequence be read from the archive, whose files are here, and drop them."""
        await self._serving.wait()
        await self._current.pruner.drop_archived(stream, up_to)

    async def span_of_task(self, task_id: TaskId) -> tuple[int, int] | None:
        """Return the sequences of a task's first and last event, of all that may have left the server; none without it.

        Raises:
            ProjectionBehind: it has not come so far.
            NoServer: the log cannot be asked.
        """
        await self.wait(TASKS, await trimmed_to(self._ground.log.connection, TASKS))
        return await self.queries.span(task_id)

    async def lag(self) -> list[Lag]:
        """Return how far each stream is applied, and how far it goes.

        Raises:
            NoServer: the log cannot be asked.
        """
        return [Lag(stream, self.applied(stream), await self._ground.source.last(stream)) for stream in STREAMS]

    async def schema(self) -> list[TableSchema]:
        """Return the tables that a query can read, each column with its type and meaning."""
        return await self.queries.schema()

    @property
    def problem(self) -> str | None:
        """Why nothing can be written, or asked, at the moment; none if all is well."""
        return self._current.projector.problem or ("it is being mended" if self._mender.busy else None)

    @property
    def corrupt(self) -> Mapping[str, int]:
        """How many messages of each stream could not be read; they are kept among `events`, as type `corrupt`."""
        return self._current.database.corrupt

    async def projections(self) -> list[VersionState]:
        """Return all versions of projections, those that serve and those that are being made."""
        await self._wait_serving()
        return await self._current.builder.states()

    async def prune(self) -> None:
        """Let what is old leave the tables; it does so by itself about once a minute."""
        await self._current.pruner.prune()

    async def rebuild(self) -> None:
        """Make the file anew from the log while the old one serves, and swap it in; a rebuild that runs is joined.

        Raises:
            NoServer: the log cannot be asked; the old file serves on.
            RebuildFailed: the new file could not be filled; the old one serves on.
        """
        if self._rebuild is None or self._rebuild.done():
            self._rebuild = asyncio.create_task(rebuild(self._path, self._ground, self._swap), name="rebuild")
        await asyncio.shield(self._rebuild)

    async def rebuild_one(self, projection: str) -> None:
        """Begin to make one projection anew, in the background of the same file; the old rows serve meanwhile.

        Raises:
            ProjectionNotFound: there is none of this name.
        """
        await self._wait_serving()
        await self._current.builder.ask(projection)

    async def snapshot(self) -> LedgerSnapshot:
        """Store a copy of the read model now, for gateways that start.

        Raises:
            ProjectionBuilding, Conflict, NoServer: see `Snapshots.make`.
        """
        await self._wait_serving()
        return await self._current.snapshots.make()

    async def _swap(self, replace: Callable[[], None]) -> None:
        """Close the file, put another in its place, and open that; queries wait until it is as far as the old one."""
        self._serving.clear()
        before = {stream: self.applied(stream) for stream in STREAMS}
        await self._current.close(fold=False)
        await asyncio.to_thread(replace)
        self._current = await self._open_patiently()
        for stream, sequence in before.items():
            with suppress(ProjectionBehind):
                await self.wait(stream, sequence)
        self._serving.set()

    async def _open_once(self) -> Generation:
        return await open_generation(self._path, self._ground, self._checkpoints, self.feed, self._mender.look_at)

    async def _open_patiently(self) -> Generation:
        while True:
            try:
                return await self._open_once()
            except (NoServer, ProjectionFileRefused) as error:
                log.warning("the read model cannot be opened yet: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _open_again(self) -> None:
        self._serving.clear()
        await self._current.close()
        self._current = await self._open_patiently()
        self._serving.set()

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[Database], _T]) -> _T:
        await self._wait_serving()
        try:
            return await self._current.readers.run(work)
        except WriteError as error:
            raise await self._meaning(error) from error

    async def _settle(self, text: str) -> None:
        """Wait until what trails is as far as all else, if a text may name one of its tables."""
        trailing = [projection for projection in self._ground.catalogue.values() if projection.trails]
        if not any(table in text.lower() for projection in trailing for table in projection.tables):
            return
        while True:
            await self._wait_serving()
            projector = self._current.projector
            try:
                return await projector.settle(self._ground.settings.read_wait_s)
            except ProjectionBehind:
                if projector is self._current.projector:  # else it was replaced, and its own will not come
                    raise

    async def _run_stranger(self, work: Callable[[Database], _T]) -> _T:
        await self._wait_serving()
        try:
            return await self._current.strangers.run(work)
        except QueryRefused as error:
            if isinstance(error.__cause__, WriteError):
                meaning = await self._meaning(error.__cause__)
                raise error if meaning is error.__cause__ else meaning from error.__cause__
            if NO_TABLE in error.problem and (building := await self._being_made(error.problem)) is not None:
                raise building from error
            raise

    async def _wait_serving(self) -> None:
        """Wait while another file is put in the place of this one; not for one that is mended.

        Raises:
            ReadModelBroken: it is being mended.
        """
        if self._serving.is_set():
            return
        try:
            async with asyncio.timeout(self._ground.settings.read_wait_s):
                await self._serving.wait()
        except TimeoutError as error:
            if (problem := self.problem) is not None:
                raise ReadModelBroken(problem=problem) from error
            await self._serving.wait()

    async def _meaning(self, error: Exception) -> Exception:
        """Return what a query's error means to who asked: a table that is not made yet, or a file that is broken."""
        if isinstance(error, NoTableError):
            return await self._being_made(str(error)) or error
        if self._mender.look_at(error):
            return ReadModelBroken(problem=str(error).partition("\n")[0])
        return error

    async def _being_made(self, problem: str) -> ProjectionBuilding | None:
        for state in await self.projections():
            if not state.serving and any(f"name {table} " in problem for table in state.rows):
                last = sum(self.applied(stream) for stream in state.checkpoint)
                return ProjectionBuilding(
                    projection=state.projection, applied=sum(state.checkpoint.values()), last=last
                )
        return None

    async def _travel(self, work: Callable[[Database], _T]) -> _T:
        await self._wait_serving()
        try:
            return await self._current.travellers.run(work)
        except WriteError as error:
            raise await self._meaning(error) from error
