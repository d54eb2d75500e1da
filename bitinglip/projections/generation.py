"""One database file while it is served: the projector that writes it, and the threads that read it."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from bitinglip.events.feed import TaskFeed
from bitinglip.events.log import EventLog
from bitinglip.projections import sandbox, timetravel
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database, create_bulk, discard, open_database
from bitinglip.projections.projector import STREAMS, Projector
from bitinglip.projections.query import THREADS, CursorPool
from bitinglip.settings import Projections

logger = logging.getLogger(__name__)

BULK_BATCHES = 5
"""Batches in one transaction of a new file: a task that begins and ends in one is written once, and never updated."""


class Generation:
    """An open database with its projector and its readers."""

    def __init__(self, path: Path, database: Database, projector: Projector) -> None:
        self.path = path
        self.projector = projector
        self.database = database
        self.readers = CursorPool(database, "query", THREADS)
        self.strangers = CursorPool(database, "sandbox", sandbox.THREADS)
        self.travellers = CursorPool(database, "past", timetravel.THREADS)

    async def close(self) -> None:
        """Stop the writing, let running queries end, and close the file."""
        await self.projector.stop()
        await self.readers.close()
        await self.strangers.close()
        await self.travellers.close()
        await asyncio.to_thread(self.database.close)


async def open_generation(
    path: Path, settings: Projections, log: EventLog, checkpoints: Checkpoints, feed: TaskFeed
) -> Generation:
    """Open the file and start its projector where the file's checkpoints say; not on a log that they don't belong to.

    `feed` is handed the events of TASKS as they come.

    Raises:
        ProjectionFileBusy: another process has the file open.
        NoServer: the log cannot be asked.
    """
    database = await asyncio.to_thread(open_database, path, settings)
    try:
        if (problem := await _begin(database, log)) is not None:
            logger.warning("the read model in %s is made anew from the log: %s", path, problem)
            database.close()
            await asyncio.to_thread(discard, path)
            database = await asyncio.to_thread(open_database, path, settings)
            await _begin(database, log)
        for stream, (sequence, _) in database.checkpoints().items():
            checkpoints.advance(stream, sequence)
    except BaseException:
        database.close()
        raise
    projector = Projector(log, database, checkpoints, settings, feed=feed)
    projector.start()
    return Generation(path, database, projector)


async def open_bulk(path: Path, settings: Projections, log: EventLog) -> Generation:
    """Make a new file and start a projector that fills it in few, large transactions; it is whole once it is closed.

    Raises:
        NoServer: the log cannot be asked.
    """
    database = await asyncio.to_thread(create_bulk, path, settings)
    try:
        await _begin(database, log)
    except BaseException:
        database.close()
        raise
    projector = Projector(log, database, Checkpoints(), settings, batches=BULK_BATCHES)
    projector.start()
    return Generation(path, database, projector)


async def _begin(database: Database, log: EventLog) -> str | None:
    """Begin streams without a checkpoint; say what is wrong with a checkpoint that cannot be of this log."""
    known = database.checkpoints()
    for stream in STREAMS:
        created, last = await log.stream_created(stream), await log.last_sequence(stream)
        applied, stored = known.get(stream, (0, None))
        if stored is None:
            database.add_checkpoint(stream, created)
        elif stored != created:
            return f"the stream {stream} was made anew"
        elif applied > last:
            return f"its checkpoint {applied} is beyond the last event {last} of {stream}"
    return None
