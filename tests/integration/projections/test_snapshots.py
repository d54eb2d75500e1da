"""A gateway that starts takes the newest snapshot that fits, and makes the read model from the log if none does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import Conflict, ProjectionBuilding
from bitinglip.events import snapshots
from bitinglip.events.ledger import LedgerSnapshot
from bitinglip.events.log import EventLog
from bitinglip.events.streams import SNAPSHOTS_BUCKET, TASKS
from bitinglip.projections import snapshot, sql
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.snapshot import told
from bitinglip.settings import Projections
from tests.integration.projections.test_building import SETTINGS, changed, other_tasks, reading, submit

Eventually = Callable[..., Awaitable[Any]]
TASKS_SENT = 5
BEGINS = "begins with the snapshot"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return tmp_path / "first" / "p.duckdb"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return tmp_path / "second" / "p.duckdb"


@pytest.fixture
async def made(log: EventLog, first: Path) -> AsyncIterator[LedgerSnapshot]:
    """A snapshot of a gateway that has seen a few tasks."""
    for _ in range(TASKS_SENT):
        await submit(log, params={"text": os.urandom(2_000).hex()})
    async with reading(log, first) as readmodel:
        await readmodel.wait_ready()
        yield await readmodel.snapshot()


async def all_rows(readmodel: ReadModel) -> dict[str, list[list[Any]]]:
    told = {}
    for name in sql.NAMES:
        where = " where type <> 'ledger.snapshot'" if name == "events" else ""
        told[name] = (await readmodel.sandbox.run(f"select * from {name}{where} order by all", [], 20, 10_000)).rows
    return told


async def test_a_new_gateway_begins_with_it(
    log: EventLog, first: Path, second: Path, made: LedgerSnapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert made.checkpoints[TASKS] == TASKS_SENT
    _, sequence = await submit(log)
    async with reading(log, second) as readmodel:
        assert readmodel.applied(TASKS) >= TASKS_SENT
        await readmodel.wait_ready()
        await readmodel.wait(TASKS, sequence)
        begun = await all_rows(readmodel)
        schema = await readmodel.schema()
    assert BEGINS in caplog.text
    assert sorted(left.name for left in second.parent.iterdir()) == ["p.duckdb"]
    await log.connection.js.delete_object_store(SNAPSHOTS_BUCKET)
    async with reading(log, second.parent / "third.duckdb") as readmodel:
        await readmodel.wait_ready()
        assert await all_rows(readmodel) == begun
        assert await readmodel.schema() == schema


async def test_a_file_that_is_not_far_behind_is_gone_on_with(
    log: EventLog, first: Path, made: LedgerSnapshot, second: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
    assert caplog.text.count(BEGINS) == 1
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
    assert caplog.text.count(BEGINS) == 1


async def test_a_file_that_is_far_behind_is_replaced(
    log: EventLog, first: Path, second: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
    for _ in range(TASKS_SENT):
        await submit(log)
    async with reading(log, first) as readmodel:
        await readmodel.wait_ready()
        await readmodel.snapshot()
    monkeypatch.setattr(snapshot, "MUCH", TASKS_SENT)
    async with reading(log, second) as readmodel:
        assert readmodel.applied(TASKS) == TASKS_SENT
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT}
    assert BEGINS in caplog.text


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
async def test_one_whose_bytes_changed_is_not_used(
    log: EventLog, made: LedgerSnapshot, second: Path, tmp_path: Path, part: float, caplog: pytest.LogCaptureFixture
) -> None:
    packed = tmp_path / "packed"
    assert await snapshots.get(log.connection, made.file, packed)
    content = bytearray(packed.read_bytes())
    content[int(part * len(content))] ^= 0xFF
    packed.write_bytes(content)
    await snapshots.put(log.connection, made.file, packed)
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT}
    assert "its bytes are not those" in caplog.text


async def test_one_that_is_gone_is_passed_over_for_the_one_before(
    log: EventLog, first: Path, second: Path, made: LedgerSnapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lost = made.model_copy(update={"file": "snapshot-lost"})
    await log.append(log.ledger_append(lost, snapshot.ABOUT, (await told(log))[0][0]))
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT}
    assert "it is not in the object store any more" in caplog.text
    assert BEGINS in caplog.text


@pytest.mark.parametrize("change", [{"checkpoints": {TASKS: TASKS_SENT + 1}}, {"sha256": "0" * 64}, {"size_bytes": 1}])
async def test_one_that_is_not_what_was_told_is_not_used(
    log: EventLog, second: Path, made: LedgerSnapshot, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = made.model_copy(update=change)
    await log.append(log.ledger_append(other, snapshot.ABOUT, (await told(log))[0][0]))
    await snapshots.keep(log.connection, frozenset({made.file}))
    async with reading(log, second) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT}
    assert "is not used" in caplog.text


async def test_one_of_a_log_that_was_made_anew_is_not_used(
    log: EventLog, second: Path, made: LedgerSnapshot, caplog: pytest.LogCaptureFixture
) -> None:
    await log.connection.js.delete_stream("QUEUE")
    await log.connection.js.delete_stream(TASKS)
    fresh = await EventLog.connect(log.connection.settings, "/test")
    for _ in range(TASKS_SENT + 1):
        await submit(fresh)
    async with reading(fresh, second) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT + 1}
    await fresh.close()
    assert "the stream TASKS was made anew" in caplog.text


async def test_one_of_other_projections_is_not_used(
    log: EventLog, second: Path, made: LedgerSnapshot, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with reading(log, second, changed(tasks=other_tasks())) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {"queued": TASKS_SENT}
    assert BEGINS not in caplog.text


async def test_the_last_two_are_kept(log: EventLog, first: Path) -> None:
    await submit(log)
    async with reading(log, first) as readmodel:
        await readmodel.wait_ready()
        names = [(await readmodel.snapshot()).file for _ in range(3)]
        assert sorted(left.name for left in first.parent.iterdir() if "snapshot" in left.name) == []
    store = await log.connection.js.object_store(SNAPSHOTS_BUCKET)
    assert {info.name for info in await store.list(ignore_deletes=True)} == set(names[1:])
    assert [event.file for _, event in await told(log)] == names[::-1]


async def test_of_two_that_make_one_at_once_only_one_does(log: EventLog, first: Path, second: Path) -> None:
    await submit(log)
    async with reading(log, first) as one, reading(log, second) as other:
        await one.wait_ready()
        await other.wait_ready()
        outcomes = await asyncio.gather(one.snapshot(), other.snapshot(), return_exceptions=True)
    made = [outcome for outcome in outcomes if isinstance(outcome, LedgerSnapshot)]
    assert len(made) == 1
    assert any(isinstance(outcome, Conflict) for outcome in outcomes)
    assert [event.file for _, event in await told(log)] == [made[0].file]
    store = await log.connection.js.object_store(SNAPSHOTS_BUCKET)
    assert [info.name for info in await store.list(ignore_deletes=True)] == [made[0].file]


async def test_two_may_drop_the_old_ones_at_once(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"rows")
    names = [f"snapshot-{number}" for number in range(8)]
    for name in names:
        await snapshots.put(log.connection, name, tmp_path / "one")
    keep_none, keep_half = (snapshots.keep(log.connection, frozenset(names[:kept])) for kept in (0, 4))
    await asyncio.gather(keep_none, keep_half)  # the one that drops all finds those that the other began with gone
    assert not any([await snapshots.get(log.connection, name, Path(os.devnull)) for name in names])


async def test_one_is_made_after_so_many_events(log: EventLog, first: Path) -> None:
    settings = SETTINGS.model_copy(update={"snapshot_events": 3})
    readmodel = await ReadModel.open(settings, first, log)
    try:
        await readmodel.wait_ready()
        chore = readmodel._current.snapshots
        assert await chore.make_if_due() is None
        sent = [await submit(log) for _ in range(3)]
        await readmodel.wait(TASKS, sent[-1][1])
        assert await chore.make_if_due() is not None
        assert await chore.make_if_due() is None
    finally:
        await readmodel.close()


async def test_none_is_made_by_itself_if_that_is_off(log: EventLog, first: Path) -> None:
    readmodel = await ReadModel.open(Projections(memory_limit="200MB", snapshot_events=0), first, log)
    try:
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await readmodel._current.snapshots.make_if_due() is None
    finally:
        await readmodel.close()


async def test_none_is_made_while_a_projection_is(log: EventLog, first: Path) -> None:
    await submit(log)
    async with reading(log, first) as readmodel:
        await readmodel.wait_ready()
    async with reading(log, first, changed(tasks=other_tasks())) as readmodel, readmodel._current.projector.writing:
        with pytest.raises(ProjectionBuilding):
            await readmodel.snapshot()
