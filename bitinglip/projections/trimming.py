"""What is archived and needed no more leaves the server: whole tasks, of which nothing is left behind.

The archive's file is read back from the server and checked first; `ledger.trimmed` is in the log before anything
leaves, so that a reader who misses events knows where to look. A crash in between is made up for by the next look,
which goes by what the server still holds.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple

from bitinglip.events import archive, subjects
from bitinglip.events.envelope import text_of
from bitinglip.events.ledger import LedgerArchived, LedgerTrimmed
from bitinglip.events.log import EventLog
from bitinglip.events.reading import read_between
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.projections.archive import Archive
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Archive as Settings

log = logging.getLogger(__name__)

_DAY_S = 86_400


class Held(NamedTuple):
    """What the server holds of one task, up to a boundary."""

    first: int
    last: int
    events: int


class Plan(NamedTuple):
    """What is to leave."""

    up_to: int
    """All messages of tasks before this sequence, which are whole tasks or nobody's."""
    one_by_one: list[str]
    """Tasks that go on after it, and leave one by one."""
    removed: int


class Trimmer:
    """Trims the stream TASKS of one log."""

    def __init__(self, event_log: EventLog, files: Archive, readmodel: ReadModel, settings: Settings) -> None:
        self._log = event_log
        self._files = files
        self._readmodel = readmodel
        self._settings = settings
        self._checked = 0
        """Up to where the archive was read back."""
        self._done = -1
        """Boundary up to which this process has looked that nothing is left."""

    async def boundary(self) -> int:
        """Return up to which sequence tasks that are over can leave: the end of a file that is old, or one too many.

        Raises:
            ProjectionBehind: the read model has not come so far.
            NoServer: the server does not answer.
        """
        files = await self._files.index(TASKS)
        await self._readmodel.wait(TASKS, files[-1].last_sequence if files else 0)
        old_s = self._log.clock().timestamp() - self._settings.hot_age_s
        found = 0
        for file in files:
            if stored_at(file) > old_s and not await self._is_too_many(file):
                break
            found = file.last_sequence
        return max(found, await archive.trimmed_to(self._log.connection, TASKS))

    async def trim(self) -> LedgerTrimmed | None:
        """Let leave what can; returns what was said of it, none if nothing left.

        Raises:
            Conflict: another gateway is at it.
            ArchiveDamaged: a file of the archive is not as it should be: nothing leaves.
            ProjectionBehind: the read model has not come so far.
            NoServer: the server does not answer.
            OSError: the archive's folder cannot be written.
        """
        boundary = await self.boundary()
        if not boundary or boundary == self._done:
            return None
        await self._check(boundary)
        held = await self._held(boundary)
        plan = plan_of(held, await self._readmodel.queries.over(list(held), boundary), boundary)
        event = await self._announce(boundary, plan.removed)
        chosen = [subjects.task_events(TaskId(task_id)) for task_id in plan.one_by_one]
        await archive.purge_all(self._log.connection, TASKS, chosen, boundary + 1)
        await archive.purge(self._log.connection, TASKS, subjects.TASKS, plan.up_to)
        self._done = boundary
        if plan.removed:
            log.info("trimmed %s up to %d: %d messages have left", TASKS, boundary, plan.removed)
        return event

    async def _announce(self, boundary: int, removed: int) -> LedgerTrimmed | None:
        last, expected = await archive.last_trimmed(self._log.connection, TASKS)
        if last is not None and last.up_to_sequence >= boundary:  # another gateway may have seen more files meanwhile
            return last if removed else None
        event = LedgerTrimmed(stream=TASKS, up_to_sequence=boundary, removed=removed)
        await self._log.append(self._log.ledger_append(event, TASKS, expected))
        return event

    async def _check(self, boundary: int) -> None:
        """Read the archive back up to the boundary, each file once."""
        for file in await self._files.index(TASKS):
            if self._checked < file.last_sequence <= boundary:
                await self._files.fetch(file)
                self._checked = file.last_sequence

    async def _held(self, boundary: int) -> dict[str, Held]:
        """Return what the server holds of each task up to the boundary."""
        found: dict[str, Held] = {}
        tasks = (subjects.TASKS,)
        async with aclosing(read_between(self._log, TASKS, 0, boundary, 4_096, tasks, held=True)) as batches:
            async for batch in batches:
                note(found, zip(batch.sequences, batch.subjects, strict=True))
        return found

    async def _is_too_many(self, file: LedgerArchived) -> bool:
        return await self._readmodel.queries.over_after(file.first_sequence - 1) > self._settings.hot_tasks


def stored_at(file: LedgerArchived) -> float:
    """Return when the server stored a file's last event, in seconds since 1970."""
    if file.last_time_ns is not None:
        return file.last_time_ns / 1e9
    return datetime.fromisoformat(file.day).replace(tzinfo=UTC).timestamp() + _DAY_S


def note(found: dict[str, Held], messages: Iterable[tuple[int, bytes]]) -> None:
    """Add messages (their sequences and subjects, in order) to what is held of their tasks."""
    for sequence, subject in messages:
        task_id = text_of(subject.split(b".", 3)[2])
        held = found.get(task_id)
        found[task_id] = Held(
            sequence if held is None else held.first, sequence, 1 if held is None else held.events + 1
        )


def plan_of(held: Mapping[str, Held], over: Iterable[str], boundary: int) -> Plan:
    """Return what is to leave so that of each task that is over nothing stays, and of the others everything. Pure."""
    leaving = set(over) & set(held)
    up_to = min((each.first for task_id, each in held.items() if task_id not in leaving), default=boundary + 1)
    one_by_one = sorted(task_id for task_id in leaving if held[task_id].last >= up_to)
    return Plan(up_to, one_by_one, sum(held[task_id].events for task_id in leaving))
