"""Reading a stream while a part of it leaves the server, and the archive in a backup."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

from bitinglip.events import archive
from bitinglip.events.backup import back_up, restore
from bitinglip.events.cold import history
from bitinglip.events.connection import Connection
from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.ledger import LedgerTrimmed
from bitinglip.events.log import EventLog
from bitinglip.events.reading import end_of, read_between
from bitinglip.events.streams import TASKS
from bitinglip.events.tail import HEARTBEAT_S, IsOver
from bitinglip.projections.archive import Archive
from bitinglip.projections.archiving import Archiver
from bitinglip.projections.trimming import Trimmer
from bitinglip.settings import Archive as Settings
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.conftest import drop_streams

ECHO = SubmitTask(kind="echo", model="echo", params={"message": "x" * 10_000})
NOW = Settings(settled_s=0, part_events=40)


async def archived(log: EventLog, folder: Path, count: int) -> list[int]:
    """Store and archive so many events; returns their sequences."""
    inbox = Inbox(log, 65_536)
    stored = [(await inbox.submit(ECHO)).sequence for _ in range(count)]
    log.connection.cold = files = Archive(log, folder)
    await Archiver(log, files, NOW).archive(TASKS, now=True)
    return [int(sequence) for sequence in stored]


async def leave(log: EventLog, up_to: int) -> None:
    """Let all events up to a sequence leave, as a trimmer would."""
    _, expected = await archive.last_trimmed(log.connection, TASKS)
    event = LedgerTrimmed(stream=TASKS, up_to_sequence=up_to, removed=up_to)
    await log.append(log.ledger_append(event, TASKS, expected))
    await archive.purge(log.connection, TASKS, "bl.task.>", up_to + 1)


async def test_a_slower_trimmer_takes_nothing_back(log: EventLog, tmp_path: Path) -> None:
    """It saw fewer files: what it said would hide from new read models what has left already."""
    nothing: Any = None
    trimmer = Trimmer(log, Archive(log, tmp_path), nothing, NOW)
    assert await trimmer._announce(9, 3) is not None
    for boundary in (6, 9):
        told = await trimmer._announce(boundary, 3)
        assert told is not None
        assert told.up_to_sequence == 9
        assert await archive.trimmed_to(log.connection, TASKS) == 9
    await trimmer._announce(12, 3)
    assert await archive.trimmed_to(log.connection, TASKS) == 12


class Late(EventLog):
    """A log of which a part leaves just before its tail is read."""

    leaves: list[int]
    tails = 0

    async def tail(
        self, stream: str, after: int, *, filters: Seq[str] = (), most: int = 4_096, over: IsOver | None = None
    ) -> AsyncGenerator[Messages, None]:
        self.tails += 1
        if self.leaves:
            await leave(self, self.leaves.pop(0))
        async with aclosing(super().tail(stream, after, filters=filters, most=most, over=over)) as batches:
            async for batch in batches:
                yield batch


DAY_NS = 86_400 * 10**9


class Aged(EventLog):
    """A log whose first events are of the day before the others."""

    older: int
    """The last one of them."""

    def _aged(self, messages: Seq[RawMessage]) -> list[RawMessage]:
        return [
            message._replace(time_ns=message.time_ns - DAY_NS * (message.sequence <= self.older))
            for message in messages
        ]

    async def first_after(self, stream: str, after: int, filters: Seq[str] = ()) -> list[RawMessage]:
        return self._aged(await super().first_after(stream, after, filters))

    async def tail(
        self, stream: str, after: int, *, filters: Seq[str] = (), most: int = 4_096, over: IsOver | None = None
    ) -> AsyncGenerator[Messages, None]:
        async with aclosing(super().tail(stream, after, filters=filters, most=most, over=over)) as batches:
            async for batch in batches:
                yield Messages.of(self._aged(batch))


async def test_a_day_that_is_over_is_archived_however_few_its_events_are(log: EventLog, tmp_path: Path) -> None:
    inbox = Inbox(log, 65_536)
    stored = [(await inbox.submit(ECHO)).sequence for _ in range(30)]
    aged = Aged(log.connection, "/test")
    log.connection.cold = files = Archive(aged, tmp_path)
    archiver = Archiver(aged, files, Settings(settled_s=0, part_events=1_000))
    aged.older = 0
    assert not await archiver.due(TASKS)
    assert await archiver.archive(TASKS) == []
    aged.older = stored[19]
    assert await archiver.due(TASKS)
    done = await archiver.archive(TASKS)
    assert not await archiver.due(TASKS)
    done += await archiver.archive(TASKS, now=True)
    today = log.clock().date()
    days = [today - timedelta(days=1), today]
    assert [file.day for file in done] == [day.isoformat() for day in days]
    assert [file.last_sequence for file in done] == [stored[19], stored[29]]
    assert [file.events for file in done] == [20, 10]
    assert [file.file.split("/")[:2] for file in done] == [[TASKS, day.isoformat()] for day in days]
    await leave(log, stored[-1])
    found = [n async for batch in read_between(log, TASKS, 0, stored[-1]) for n in batch.sequences]
    assert found == stored


async def test_who_is_behind_misses_nothing_that_leaves(log: EventLog, tmp_path: Path) -> None:
    stored = await archived(log, tmp_path, 100)
    late, seen = Late(log.connection, "/test"), list[int]()
    late.leaves = [stored[30], stored[60], stored[60]]
    async with aclosing(history(late, TASKS, 0, most=5)) as batches:
        async for batch in batches:
            seen += batch.sequences
            if seen[-1] == stored[-1]:
                break
    assert seen == stored
    assert not late.leaves[1:]


async def test_who_is_behind_misses_nothing_when_all_of_it_leaves(log: EventLog, tmp_path: Path) -> None:
    """Nothing that comes later shows that something is missing."""
    stored = await archived(log, tmp_path, 100)
    late, seen = Late(log.connection, "/test"), list[int]()
    late.leaves = [stored[30], stored[-1]]
    async with asyncio.timeout(20), aclosing(history(late, TASKS, 0, most=5)) as batches:
        async for batch in batches:
            seen += batch.sequences
            if seen[-1] == stored[-1]:
                break
    assert seen == stored


async def test_who_waits_is_not_disturbed_by_what_has_left(log: EventLog, tmp_path: Path) -> None:
    """A reader that has all, and one that wants nothing of it, go on with the tail that they have."""
    stored = await archived(log, tmp_path, 10)
    await leave(log, stored[-1])
    begun = Late(log.connection, "/test")
    begun.leaves = []
    wanted = ("bl.task.*.failed",)
    async with (
        aclosing(history(begun, TASKS, 0)) as batches,
        aclosing(history(begun, TASKS, 0, filters=wanted)) as none,
    ):
        found = await anext(batches)
        assert list(found.sequences) == stored
        waiting = [asyncio.ensure_future(anext(each)) for each in (batches, none)]
        await asyncio.wait(waiting, timeout=3 * HEARTBEAT_S)
        assert begun.tails == 2
        assert not any(each.done() for each in waiting)
        last = (await Inbox(log, 65_536).submit(ECHO)).sequence
        assert list((await waiting[0]).sequences) == [last]
        waiting[1].cancel()
        await asyncio.wait(waiting[1:])


async def test_who_reads_once_misses_nothing_that_leaves(log: EventLog, tmp_path: Path) -> None:
    stored = await archived(log, tmp_path, 100)
    late, seen = Late(log.connection, "/test"), list[int]()
    late.leaves = [stored[30], stored[-1]]
    async with aclosing(read_between(late, TASKS, 0, await end_of(log, TASKS), 5)) as batches:
        async for batch in batches:
            seen += batch.sequences
    assert seen == stored
    assert await end_of(log, TASKS) == stored[-1]
    wanted = ("bl.task.*.queued.>",)
    assert [batch async for batch in read_between(log, TASKS, 0, stored[-1], filters=wanted)] == []
    assert [batch async for batch in read_between(log, TASKS, 0, stored[-1], held=True)] == []


async def test_a_backup_has_the_archive(log: EventLog, nats_url: str, tmp_path: Path) -> None:
    stored = await archived(log, tmp_path / "copies", 50)
    await leave(log, stored[-1])
    files = await archive.index(log.connection, TASKS)
    await back_up(log.connection, tmp_path / "backup")
    await drop_streams(nats_url)
    connection = await Connection.open(Nats(url=nats_url), "/test")
    await restore(connection, tmp_path / "backup", replicas=1)
    await connection.close()
    again = await EventLog.connect(Nats(url=nats_url), "/test")
    assert await archive.index(again.connection, TASKS) == files
    again.connection.cold = Archive(again, tmp_path / "others")
    found = [n async for batch in read_between(again, TASKS, 0, stored[-1]) for n in batch.sequences]
    assert found == stored
    await again.close()
