"""A gateway's archiver: looks once in a while what is to be archived, and what of it can leave the server.

Every gateway has one; the index lets one of them win. What goes wrong is told, tried again, and drops nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from bitinglip.errors import BitingLipError, Conflict
from bitinglip.events import archive
from bitinglip.events.archive import ARCHIVED
from bitinglip.events.ending import CLEANING_S, end
from bitinglip.events.ledger import LedgerArchived, LedgerTrimmed
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections.archive import Archive
from bitinglip.projections.archiving import Archiver, first_after
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.trimming import Trimmer, stored_at
from bitinglip.settings import Archive as Settings

log = logging.getLogger(__name__)

SWEEP_LOOKS = 60
"""Looks between two that also sweep what archivers that died have left."""
BEHIND_PARTS, BEHIND_S = 4, 2 * 86_400.0
"""How many files' worth of events, and for how long, may wait before the archive counts as behind."""


@dataclass(frozen=True, slots=True)
class Behind:
    """How far the archive of a stream is behind the stream."""

    stream: str
    archived_to: int
    """Sequence of the last archived event; 0 without one."""
    last: int
    """Sequence of the stream's last event."""
    waits_s: float
    """Age of the oldest event that is not archived; 0 without one."""


@dataclass
class Done:
    """What one look did."""

    archived: list[LedgerArchived] = field(default_factory=list[LedgerArchived])
    trimmed: LedgerTrimmed | None = None


class ArchiveKeeper:
    """Keeps the archive of one log, for one gateway."""

    def __init__(self, event_log: EventLog, files: Archive, readmodel: ReadModel, settings: Settings) -> None:
        self.files = files
        self.problem: str | None = None
        """What went wrong at the last look; none if nothing did."""
        self._log = event_log
        self._settings = settings
        self._archiver = Archiver(event_log, files, settings)
        self._readmodel = readmodel
        self._trimmer = Trimmer(event_log, files, readmodel, settings)
        self._turn = asyncio.Lock()
        self._looks = 0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, unless `archive.every_s` says not to."""
        if self._settings.every_s:
            self._task = asyncio.create_task(self._run(), name="archiver")

    async def close(self) -> None:
        """Look no more; a file that is being written is given up."""
        await end(lambda: [self._task], CLEANING_S)

    async def look(self, streams: Seq[str] = ARCHIVED, *, now: bool = False) -> Done:
        """Archive what is due, with `now` all that there is, and let leave what can.

        Raises:
            StreamFull: there is no room for the archive.
            ArchiveDamaged: a file is not as it should be.
            ProjectionBehind: the read model has not come so far.
            NoServer: the server does not answer.
            OSError: the archive's folder cannot be written.
        """
        async with self._turn:
            done = Done()
            for stream in streams:
                if now or await self._archiver.due(stream):
                    done.archived += await self._archiver.archive(stream, now=now)
            if TASKS in streams:
                done.trimmed = await self._trim()
            await self._drop()
            return done

    async def behind(self) -> list[Behind]:
        """Return how far the archive is behind in each stream.

        Raises:
            NoServer: the server does not answer.
        """
        return [await self._behind(stream) for stream in ARCHIVED]

    async def warning(self) -> str | None:
        """Say what is wrong with the archive; none if nothing is.

        Raises:
            NoServer: the server does not answer.
        """
        if not self._settings.every_s:
            return None
        for each in await self.behind():
            waits = each.last - each.archived_to
            if waits > BEHIND_PARTS * self._settings.part_events and self.problem:
                return f"{waits} events of {each.stream} wait for the archive: {self.problem}"
            if each.waits_s > BEHIND_S:
                return f"events of {each.stream} have waited {each.waits_s:.0f} s for the archive: {self.problem}"
        return None

    async def _behind(self, stream: str) -> Behind:
        last, _ = await archive.last_archived(self._log.connection, stream)
        archived_to = 0 if last is None else last.last_sequence
        oldest_ns = await first_after(self._log, stream, archived_to)
        waits_s = 0.0 if oldest_ns is None else max(0.0, self._log.clock().timestamp() - oldest_ns / 1e9)
        return Behind(stream, archived_to, await self._log.last_sequence(stream), waits_s)

    async def _drop(self) -> None:
        """Have what is archived, and old, read from the archive's files, which are brought here before."""
        here = await self._readmodel.queries.archived()
        for stream in ARCHIVED:
            for file in await self.files.index(stream):
                if file.last_sequence <= here.get(stream, 0):
                    await self.files.path_of(file)
                elif file.last_sequence <= await self._cold_to(stream):
                    await self.files.path_of(file)
                    await self._readmodel.wait(stream, file.last_sequence)
                    await self._readmodel.drop_archived(stream, file.last_sequence)

    async def _cold_to(self, stream: str) -> int:
        """Return up to where the events of a stream are older than the hot window."""
        old_s = self._log.clock().timestamp() - self._settings.hot_age_s
        old = [file.last_sequence for file in await self.files.index(stream) if stored_at(file) <= old_s]
        return max([await archive.trimmed_to(self._log.connection, stream), *old])

    async def _trim(self) -> LedgerTrimmed | None:
        try:
            return await self._trimmer.trim()
        except Conflict:
            log.info("another gateway trims %s", TASKS)
            return None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.every_s * random.uniform(0.5, 1.0))  # noqa: S311  (no secret)
            try:
                if self._looks % SWEEP_LOOKS == 0:
                    await archive.sweep(self._log)
                self._looks += 1
                await self.look()
            except (BitingLipError, OSError) as error:
                level = logging.DEBUG if str(error) == self.problem else logging.WARNING
                log.log(level, "the archive waits: %s", error)
                self.problem = str(error)
            except Exception as error:
                log.exception("the archiver failed")
                self.problem = f"{type(error).__name__}: {error}"
            else:
                self.problem = None
