"""One database file while it is served: the projector that writes it, the threads that read it, and the chores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from bitinglip.events.feed import TaskFeed
from bitinglip.projections import sandbox, timetravel
from bitinglip.projections.building import Builder
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database, WriteError
from bitinglip.projections.ground import Ground, begin
from bitinglip.projections.opening import create_bulk, discard, open_database
from bitinglip.projections.projector import Projector
from bitinglip.projections.pruning import Pruner
from bitinglip.projections.query import THREADS, CursorPool
from bitinglip.projections.snapshotting import Snapshots

logger = logging.getLogger(__name__)

BULK_BATCHES = 5
"""Batches in one transaction of a new file: a task that begins and ends in one is written once, and never updated."""


class Generation:
    """An open database with its projector and its readers."""

    def __init__(
        self, path: Path, database: Database, projector: Projector, checkpoints: Checkpoints, ground: Ground
    ) -> None:
        self.projector = projector
        self.database = database
        self._path = path
        self.readers = CursorPool(database, "query", THREADS)
        self.strangers = CursorPool(database, "sandbox", sandbox.THREADS)
        self.travellers = CursorPool(database, "past", timetravel.THREADS)
        self.builder = Builder(database, projector, ground.source, ground.settings, ground.catalogue)
        self.pruner = Pruner(database, projector, ground.log.clock, ground.settings.keep_ticks_s)
        self.snapshots = Snapshots(database, path, projector, checkpoints, ground)

    def start(self) -> None:
        """Begin to write, and with the chores."""
        self.projector.start()
        self.builder.start()
        self.pruner.start()
        self.snapshots.start()

    async def close(self, *, fold: bool = True) -> None:
        """Stop the writing, let running queries end, and close the file.

        `fold`: whether to write its write-ahead log into it before, so that it is opened soon; that takes a while.
        """
        await self.snapshots.stop()
        await self.builder.stop()
        await self.pruner.stop()
        await self.projector.stop()
        await self.readers.close()
        await self.strangers.close()
        await self.travellers.close()
        if fold:
            await asyncio.to_thread(self._fold)
        await asyncio.to_thread(self.database.close)

    def _fold(self) -> None:
        try:
            self.database.execute("checkpoint")
        except WriteError as error:
            logger.warning("%s is closed as it is, and will take longer to open: %s", self._path, error)


async def open_generation(
    path: Path,
    ground: Ground,
    checkpoints: Checkpoints,
    feed: TaskFeed,
    on_failure: Callable[[WriteError], object] | None = None,
) -> Generation:
    """Open the file and start its projector where the file's checkpoints say; not on a log that they don't belong to.

    `feed` is handed the events of TASKS as they come; `on_failure` is told of each write that failed.

    Raises:
        ProjectionFileBusy: another process has the file open.
        ProjectionFileForeign, ProjectionFileRefused: see `open_database`.
        NoServer: the log cannot be asked.
    """
    settings, log = ground.settings, ground.log
    database = await asyncio.to_thread(open_database, path, settings, ground.catalogue)
    try:
        if (problem := await begin(database, log)) is not None:
            logger.warning("the read model in %s is made anew from the log: %s", path, problem)
            database.close()
            await asyncio.to_thread(discard, path)
            database = await asyncio.to_thread(open_database, path, settings, ground.catalogue)
            await begin(database, log)
        for stream, (sequence, _) in database.checkpoints().items():
            checkpoints.advance(stream, sequence)
    except BaseException:
        database.close()
        raise
    projector = Projector(log, database, checkpoints, settings, feed=feed, source=ground.source, on_failure=on_failure)
    generation = Generation(path, database, projector, checkpoints, ground)
    generation.start()
    return generation


async def open_bulk(path: Path, ground: Ground) -> Generation:
    """Make a new file and start a projector that fills it in few, large transactions; it is whole once it is closed.

    Raises:
        NoServer: the log cannot be asked.
    """
    database = await asyncio.to_thread(create_bulk, path, ground.settings, ground.catalogue)
    try:
        await begin(database, ground.log)
    except BaseException:
        database.close()
        raise
    checkpoints = Checkpoints()
    projector = Projector(
        ground.log, database, checkpoints, ground.settings, batches=BULK_BATCHES, source=ground.source
    )
    generation = Generation(path, database, projector, checkpoints, ground)
    projector.start()
    return generation
