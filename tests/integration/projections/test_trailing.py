"""What trails over a real log: asked for, it is up to date; copied, or opened again, it is brought up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import ProjectionBehind
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections import trailing
from bitinglip.projections.database import Database
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.reports import Chosen
from tests.integration.projections.test_readmodel import finish, reading, submit

Eventually = Callable[..., Awaitable[Any]]
COUNT = "select count(*)::integer from "


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.duckdb"


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """What trails is applied when somebody asks, and not by itself."""
    monkeypatch.setattr(trailing, "EVERY_S", 10_000.0)


async def one(log: EventLog) -> int:
    """Run a task to its end; return the last sequence."""
    return await finish(log, *await submit(log))


async def lying(readmodel: ReadModel, table: str) -> int:
    """Return how many rows a table has, whatever is to come."""

    def count(cursor: Database) -> int:
        return cursor.rows(COUNT + table)[0][0]

    return await readmodel._read(count)


async def asked(readmodel: ReadModel, table: str) -> int:
    """Return how many rows somebody sees who asks for them."""
    return (await readmodel.sandbox.run(COUNT + table, [], 20, 10)).rows[0][0]


async def test_who_asks_for_it_sees_what_he_wrote(log: EventLog, path: Path, seldom: None) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        for tasks in (1, 2, 3):
            await readmodel.wait(TASKS, await one(log))
            assert await lying(readmodel, "tasks") == tasks
            assert await lying(readmodel, "attempts") == tasks - 1, "it trails"
            assert await asked(readmodel, "Attempts") == tasks


async def test_a_report_is_up_to_date(log: EventLog, path: Path, seldom: None) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, await one(log))
        assert await lying(readmodel, "usage") == 0
        now = datetime.now(UTC)
        hour = timedelta(hours=1)
        report = await readmodel.queries.report(Chosen(name="usage", since=now - hour, until=now + hour, by="model"))
        assert [row[report.columns.index("succeeded")] for row in report.rows] == [1]


async def test_what_does_not_name_it_waits_for_nothing(log: EventLog, path: Path, seldom: None) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, await one(log))
        assert await asked(readmodel, "tasks") == 1
        assert await lying(readmodel, "attempts") == 0


async def test_it_comes_by_itself(
    log: EventLog, path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trailing, "EVERY_S", 0.2)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        for tasks in (1, 2):
            await one(log)
            await eventually(lambda tasks=tasks: has(readmodel, tasks))


async def has(readmodel: ReadModel, attempts: int) -> bool:
    return await lying(readmodel, "attempts") == attempts


async def test_what_it_lacked_when_the_file_was_closed_is_read_from_the_log(
    log: EventLog, path: Path, seldom: None
) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, await one(log))
        assert await asked(readmodel, "attempts") == 1
        await readmodel.wait(TASKS, await one(log))
        assert await lying(readmodel, "attempts") == 1
    last = await one(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait(TASKS, last)
        assert await asked(readmodel, "attempts") == 3
        assert await asked(readmodel, "tasks") == 3


async def test_a_snapshot_of_what_trails_is_gone_on_with(
    log: EventLog, path: Path, seldom: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, await one(log))
        assert await lying(readmodel, "attempts") == 0
        await readmodel.snapshot()
        async with reading(log, path.parent / "second" / "p.duckdb") as second:
            await second.wait_ready()
            assert "begins with the snapshot" in caplog.text
            assert await asked(second, "attempts") == 1
            await second.wait(TASKS, await one(log))
            assert await asked(second, "attempts") == 2
            assert await asked(second, "tasks") == 2


async def test_who_asks_while_nothing_can_be_written_is_told(log: EventLog, path: Path, seldom: None) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, await one(log))
        async with readmodel._current.projector.writing:
            with pytest.raises(ProjectionBehind):
                await readmodel._current.projector.settle(0.1)
        assert await asked(readmodel, "attempts") == 1


async def test_many_ask_at_once(log: EventLog, path: Path, seldom: None) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        for tasks in range(1, 6):
            await readmodel.wait(TASKS, await one(log))
            told = await asyncio.gather(*[asked(readmodel, "attempts") for _ in range(3)])
            assert told == [tasks] * 3
