"""A file that breaks while it is served, and a disk that is full: the projector lives on, and says so."""

from __future__ import annotations

import os
import resource
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import ReadModelBroken
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections.opening import discard
from bitinglip.projections.projector import State
from tests.integration.projections.test_building import reading, submit

Eventually = Callable[..., Awaitable[Any]]
BLOCK_BYTES = 262_144
HEAD_BYTES = 3 * 4096


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.duckdb"


@contextmanager
def full_disk(most_bytes: int) -> Generator[None]:
    """Let no file of this process grow beyond this."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_holds_the_projector_up_and_no_more(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        assert readmodel.problem is None
        wal = path.with_name(path.name + ".wal")
        with full_disk(wal.stat().st_size + 100):
            sent = [await submit(log, params={"text": "x" * 10_000}) for _ in range(20)]
            await eventually(lambda: readmodel._current.projector.state is State.RETRYING)
            assert "File too large" in str(readmodel.problem)
            assert await readmodel.queries.counts() == {}
        await readmodel.wait(TASKS, sent[-1][1])
        assert await readmodel.queries.counts() == {"queued": 20}
        await eventually(lambda: readmodel.problem is None)


async def test_a_database_that_stopped_on_a_full_disk_is_opened_again(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    """DuckDB stops for good when it cannot fold its write-ahead log into the file."""
    for _ in range(20):
        await submit(log, params={"text": os.urandom(5_000).hex()})
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        first = readmodel._current
        with full_disk(path.stat().st_size):
            cursor = readmodel._current.database.cursor()
            with pytest.raises(Exception, match="File too large"):
                cursor.execute("checkpoint")
            with pytest.raises(ReadModelBroken):
                await readmodel.queries.counts()
            await eventually(lambda: readmodel._current is not first)
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await readmodel.queries.counts() == {"queued": 21}
        await eventually(lambda: readmodel.problem is None)


async def test_a_block_that_breaks_makes_the_file_anew(
    log: EventLog, path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(20):
        await submit(log, params={"text": os.urandom(5_000).hex()})
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        readmodel._current.database.cursor().execute("checkpoint")
    size = path.stat().st_size
    whole = path.read_bytes()
    broken = 0
    for place in range(HEAD_BYTES, size, BLOCK_BYTES):
        discard(path)
        path.write_bytes(whole[:place] + b"\xa5" * 64 + whole[place + 64 :])
        async with reading(log, path) as readmodel:
            first = readmodel._current.database
            try:
                await readmodel.sandbox.run("select sum(hash(columns(*))) from tasks, events", [], 20, 10)
            except ReadModelBroken:
                broken += 1
                await eventually(lambda model=readmodel, first=first: model._current.database is not first)
            await readmodel.wait_ready()
            _, sequence = await submit(log)
            await readmodel.wait(TASKS, sequence)
            found = await readmodel.sandbox.run("select count(*), min(length(params)) from tasks", [], 20, 10)
            assert found.rows[0][0] == sequence
    assert broken
    assert "is damaged, and made anew" in caplog.text
