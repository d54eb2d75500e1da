"""Writing the archive: a stream's lasting events since its last file, as files of one day each, then the index.

Any gateway may do it. Each file goes on where the last one ended, which is what the index' next event expects; who was
too slow has written a file for nothing. A file's name is its writer's alone, so that it takes nothing of another one's;
what a crash or a lost race leaves is named by no index, and swept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bitinglip.errors import Conflict
from bitinglip.events import archive
from bitinglip.events.archive import is_tick
from bitinglip.events.envelope import Messages
from bitinglip.events.ledger import LedgerArchived
from bitinglip.events.log import EventLog
from bitinglip.events.reading import end_of, read_between
from bitinglip.projections.archive import Archive
from bitinglip.projections.archivefile import ArchiveWriter
from bitinglip.settings import Archive as Settings

log = logging.getLogger(__name__)

PART_BYTES = 64 * 2**20
"""Bytes of payload at which a file ends."""
LOOK_AGAIN = 4
"""A file in the making is looked at again after this part of its most events."""
_DAY_NS = 86_400 * 10**9


@dataclass
class _Part:
    """A file in the making."""

    path: Path
    writer: ArchiveWriter
    first: int
    day: int
    """Days since 1970."""
    last: int = 0
    last_time_ns: int = 0

    def takes(self, day: int, part_events: int) -> bool:
        """Tell whether an event of that day belongs into this file."""
        return day == self.day and self.writer.events < part_events and self.writer.payload_bytes < PART_BYTES


class Archiver:
    """Writes the archive of one log."""

    def __init__(self, event_log: EventLog, files: Archive, settings: Settings) -> None:
        self._log = event_log
        self._files = files
        self._part_events = settings.part_events
        self._settled_s = settings.settled_s
        self._looked: dict[str, int] = {}
        """End of each stream at the last look that found nothing to archive."""

    async def due(self, stream: str) -> bool:
        """Tell whether there may be a whole file to write.

        Raises:
            NoServer: the server does not answer.
        """
        last, _ = await archive.last_archived(self._log.connection, stream)
        after = 0 if last is None else last.last_sequence
        end = await self._log.last_sequence(stream)
        if end - max(after, self._looked.get(stream, 0)) >= max(self._part_events // LOOK_AGAIN, 1):
            return True
        oldest = await first_after(self._log, stream, after)
        return oldest is not None and oldest // _DAY_NS < self._settled_ns() // _DAY_NS

    async def archive(self, stream: str, *, now: bool = False) -> list[LedgerArchived]:
        """Archive what makes whole files; with `now`, all that there is. Returns what was archived.

        Raises:
            StreamFull: there is no room for it: all stays in the log.
            NoServer: the server does not answer.
            OSError: the folder cannot be written.
        """
        done: list[LedgerArchived] = []
        end = await self._log.last_sequence(stream)
        try:
            async with aclosing(self._parts(stream, now=now)) as parts:
                async for part in parts:
                    done.append(await self._enter(stream, part))
        except Conflict:
            log.info("another gateway archives %s", stream)
        if not done:
            self._looked[stream] = end
        return done

    async def _parts(self, stream: str, *, now: bool) -> AsyncGenerator[_Part]:
        """Yield files that are written, one at a time; what is left in the end is dropped unless it is due."""
        last, _ = await archive.last_archived(self._log.connection, stream)
        after, settled_ns = 0 if last is None else last.last_sequence, self._settled_ns()
        part: _Part | None = None
        try:
            async with aclosing(
                read_between(self._log, stream, after, await end_of(self._log, stream), 4_096)
            ) as batches:
                async for batch in batches:
                    for sequence, time_ns, subject, payload in _lasting(batch, settled_ns):
                        day = time_ns // _DAY_NS
                        if part is not None and not part.takes(day, self._part_events):
                            await self._close(part)
                            yield part
                            part = None
                        if part is None:
                            part = self._begin(stream, after + 1, day)
                        part.writer.add(sequence, time_ns, subject, payload)
                        after, part.last, part.last_time_ns = sequence, sequence, time_ns
                    await asyncio.sleep(0)
                    if batch.times_ns[-1] > settled_ns:
                        break
            if part is not None and (now or not part.takes(settled_ns // _DAY_NS, self._part_events)):
                await self._close(part)
                yield part
        finally:
            if part is not None:
                part.path.unlink(missing_ok=True)

    def _begin(self, stream: str, first: int, day: int) -> _Part:
        path = self._files.scratch()
        return _Part(path, ArchiveWriter(path, stream), first, day)

    async def _close(self, part: _Part) -> None:
        await asyncio.to_thread(part.writer.close)

    async def _enter(self, stream: str, part: _Part) -> LedgerArchived:
        """Store a file, then say in the log that it is there.

        Raises:
            Conflict: another one is there by now.
        """
        try:
            event = await asyncio.to_thread(_event, stream, part, self._log.ids())
            last, expected = await archive.last_archived(self._log.connection, stream)
            if (0 if last is None else last.last_sequence) + 1 != event.first_sequence:
                raise Conflict(subject=stream, expected=expected)
            await archive.store(self._log.connection, event.file, part.path)
            await self._log.append(self._log.ledger_append(event, stream, expected))
            path = self._files.folder / event.file
            path.parent.mkdir(parents=True, exist_ok=True)
            part.path.replace(path)
        finally:
            part.path.unlink(missing_ok=True)
        log.info("archived %s: %d events up to %d in %s", stream, event.events, event.last_sequence, event.file)
        return event

    def _settled_ns(self) -> int:
        return int((self._log.clock().timestamp() - self._settled_s) * 1e9)


async def first_after(event_log: EventLog, stream: str, after: int) -> int | None:
    """Return when the server stored the first event after a sequence, in nanoseconds since 1970; none without one.

    Raises:
        NoServer: the server does not answer.
    """
    found = [message.time_ns for message in await event_log.first_after(stream, after)]
    return min(found, default=None)


def _lasting(batch: Messages, settled_ns: int) -> Iterator[tuple[int, int, bytes, bytes]]:
    payloads, offsets = batch.payload, batch.offsets
    for index, (sequence, time_ns) in enumerate(zip(batch.sequences, batch.times_ns, strict=True)):
        if time_ns > settled_ns:
            return
        subject, payload = batch.subjects[index], bytes(payloads[offsets[index] : offsets[index + 1]])
        if not is_tick(subject, payload):
            yield sequence, time_ns, subject, payload


def _event(stream: str, part: _Part, name: str) -> LedgerArchived:
    day = datetime.fromtimestamp(part.day * 86_400, UTC).date().isoformat()
    return LedgerArchived(
        stream=stream,
        day=day,
        file=f"{stream}/{day}/{part.first:012}-{part.last:012}-{name}.parquet",
        first_sequence=part.first,
        last_sequence=part.last,
        events=part.writer.events,
        size_bytes=part.path.stat().st_size,
        sha256=archive.digest_of(part.path),
        last_time_ns=part.last_time_ns,
    )
