"""The read model over a real log: it follows, it waits, it is rebuilt, it survives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import astuple, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from bitinglip import logs
from bitinglip.errors import InvalidInput, ProjectionBehind, ProjectionFileBusy, RebuildFailed
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelRegistered
from bitinglip.events.streams import MODELS, TASKS, WORKERS
from bitinglip.events.subjects import encode_token, model_subject, worker_subject
from bitinglip.events.task import TaskAssigned, TaskQueued, TaskSubmitted, TaskSucceeded
from bitinglip.events.worker import WorkerStarted
from bitinglip.ids import TaskId
from bitinglip.projections import filling, pace, sql
from bitinglip.projections.projector import State
from bitinglip.projections.readmodel import ReadModel, TaskFilter, TaskRow
from bitinglip.projections.rebuild import beside
from bitinglip.settings import Log, Nats, Projections
from tests.support.server import publish_raw

SETTINGS = Projections(memory_limit="200MB", read_wait_s=20.0)
ROUTE = ("normal", encode_token("openai-community/gpt2"))
Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.duckdb"


@asynccontextmanager
async def reading(log: EventLog, path: Path, settings: Projections = SETTINGS) -> AsyncIterator[ReadModel]:
    readmodel = await ReadModel.open(settings, path, log)
    try:
        yield readmodel
    finally:
        await readmodel.close()


async def submit(log: EventLog, **changes: Any) -> tuple[TaskId, int]:
    task_id = TaskId(log.ids())
    event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id} | changes)
    return task_id, await log.append(log.task_append(event, 0, route=ROUTE))


async def finish(log: EventLog, task_id: TaskId, sequence: int) -> int:
    assigned = TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task_id})
    sequence = await log.append(log.task_append(assigned, sequence))
    succeeded = TaskSucceeded.model_validate(TaskSucceeded.example | {"task_id": task_id})
    return await log.append(log.task_append(succeeded, sequence))


async def all_tasks(readmodel: ReadModel) -> list[TaskRow]:
    return (await readmodel.queries.tasks(TaskFilter(limit=1000)))[0]


async def test_a_reader_reads_its_own_writes(log: EventLog, path: Path) -> None:
    async with reading(log, path) as readmodel:
        for _ in range(5):
            task_id, sequence = await submit(log)
            await readmodel.wait(TASKS, sequence)
            row = await readmodel.queries.task(task_id)
            assert row is not None
            assert (row.state, row.submitted_sequence, row.last_sequence) == ("queued", sequence, sequence)
            last = await finish(log, task_id, sequence)
            await readmodel.wait(TASKS, last)
            row = await readmodel.queries.task(task_id)
            assert row is not None
            assert (row.state, row.result) == ("succeeded", TaskSucceeded.example["result"])
        assert await readmodel.queries.counts() == {"succeeded": 5}
        assert await readmodel.queries.task("01JZ0000000000000000000000") is None


async def test_what_was_in_the_log_before_is_caught_up(log: EventLog, path: Path) -> None:
    sent = [await submit(log) for _ in range(20)]
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        assert readmodel.ready
        assert [row.task_id for row in await all_tasks(readmodel)] == [task_id for task_id, _ in reversed(sent)]
        assert [(lag.stream, lag.last - lag.applied) for lag in await readmodel.lag()] == [
            (TASKS, 0), (WORKERS, 0), (MODELS, 0), ("SCHEDULES", 0), ("LEDGER", 0)
        ]  # fmt: skip
        assert readmodel.applied(TASKS) == sent[-1][1]


async def test_an_empty_log_is_ready_at_once(log: EventLog, path: Path) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        assert await readmodel.queries.counts() == {}


async def test_a_timer_at_the_end_of_the_stream_is_no_lag(log: EventLog, path: Path) -> None:
    task_id, _ = await submit(log)
    timer = TaskQueued(task_id=task_id, attempt=2, reason="retry")
    await log.append(log.timer_append(timer, 2, log.clock() + timedelta(hours=1), ROUTE))
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        assert all(lag.last == lag.applied for lag in await readmodel.lag())


async def test_workers_and_models_are_followed(log: EventLog, path: Path) -> None:
    started = WorkerStarted.model_validate(WorkerStarted.example)
    registered = ModelRegistered.model_validate(ModelRegistered.example)
    async with reading(log, path) as readmodel:
        worker = await log.append(log.fact_append(started, worker_subject("rig-1-0", "started"), "rig-1-0"))
        subject = model_subject(registered.reference, "registered")
        model = await log.append(log.fact_append(registered, subject, registered.reference))
        await readmodel.wait(WORKERS, worker)
        await readmodel.wait(MODELS, model)
        assert [row.worker_id for row in await readmodel.queries.workers()] == ["rig-1-0"]
        assert [row.reference for row in await readmodel.queries.models()] == ["openai-community/gpt2"]


async def test_pages_are_whole_and_filtered(log: EventLog, path: Path) -> None:
    sent = [await submit(log, lane=("normal", "batch")[n % 2], metadata={"n": str(n), "x": "y"}) for n in range(7)]
    await finish(log, *sent[3])
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        found, cursor, pages = [], None, 0
        while pages == 0 or cursor is not None:
            rows, cursor = await readmodel.queries.tasks(TaskFilter(limit=3, cursor=cursor))
            found += [row.task_id for row in rows]
            pages += 1
        assert (found, pages) == ([task_id for task_id, _ in reversed(sent)], 3)

        async def count(**chosen: Any) -> int:
            return len((await readmodel.queries.tasks(TaskFilter(**chosen)))[0])

        assert await count(lane="batch") == 3
        assert await count(states=("succeeded",)) == 1
        assert await count(states=("succeeded", "queued")) == 7
        assert await count(metadata={"n": "3", "x": "y"}) == 1
        assert await count(metadata={"n": "3", "x": "z"}) == 0
        assert await count(metadata={"n": "\"'); drop table tasks; --"}) == 0
        assert await count(kind="embedding") == 0
        assert await count(model="openai-community/gpt2", key_id=None) == 7
        row = await readmodel.queries.task(sent[3][0])
        assert row is not None
        assert await count(submitted_after=row.submitted_at) == 3
        assert await count(submitted_before=row.submitted_at) == 3
        with pytest.raises(InvalidInput):
            await count(cursor="1 or 1=1")


async def test_it_goes_on_after_a_restart(log: EventLog, path: Path) -> None:
    await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    task_id, sequence = await submit(log)
    async with reading(log, path) as readmodel:
        assert readmodel.applied(TASKS) == sequence - 1
        await readmodel.wait(TASKS, sequence)
        assert await readmodel.queries.task(task_id) is not None
        assert len(await all_tasks(readmodel)) == 2


async def test_a_rebuild_makes_the_same_tables_while_the_old_one_serves(log: EventLog, path: Path) -> None:
    for _ in range(30):
        task_id, sequence = await submit(log)
        await finish(log, task_id, sequence)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        before = await all_tasks(readmodel)
        rebuilding = asyncio.create_task(readmodel.rebuild())
        added = 0
        while not rebuilding.done():
            _, sequence = await submit(log)
            added += 1
            await readmodel.wait(TASKS, sequence)
            assert len(await all_tasks(readmodel)) == len(before) + added
        await rebuilding
        after = await all_tasks(readmodel)
        assert [astuple(row) for row in after[added:]] == [astuple(row) for row in before]
        assert not beside(path).exists()
    async with reading(log, path) as readmodel:
        assert len(await all_tasks(readmodel)) == len(before) + added


async def test_what_a_killed_rebuild_left_is_swept(log: EventLog, path: Path) -> None:
    beside(path).write_bytes(b"half")
    beside(path).with_name(beside(path).name + ".wal").write_bytes(b"half")
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    assert [left.name for left in path.parent.iterdir()] == [path.name]


async def test_closing_gives_a_rebuild_up(log: EventLog, path: Path) -> None:
    await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        rebuilding = asyncio.create_task(readmodel.rebuild())
        await asyncio.wait([rebuilding], timeout=0)
    await asyncio.wait([rebuilding])
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        assert len(await all_tasks(readmodel)) == 1


async def filling_process(path: Path, eventually: Eventually) -> psutil.Process:
    """Return the process that fills the new file, once it has begun with it."""
    await eventually(lambda: beside(path).exists())
    (process,) = [each for each in psutil.Process().children() if filling.__name__ in each.cmdline()]
    return process


async def test_closing_ends_the_process_that_fills_the_new_file(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        rebuilding = asyncio.create_task(readmodel.rebuild())
        process = await filling_process(path, eventually)
    assert not process.is_running()
    assert rebuilding.cancelled()
    assert not beside(path).exists()


async def test_the_old_file_serves_on_when_the_process_that_fills_the_new_one_is_killed(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    task_id, _ = await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        rebuilding = asyncio.create_task(readmodel.rebuild())
        (await filling_process(path, eventually)).kill()
        with pytest.raises(RebuildFailed, match="killed by signal 9"):
            await rebuilding
        assert not beside(path).exists()
        assert [row.task_id for row in await all_tasks(readmodel)] == [task_id]
        await readmodel.rebuild()
        assert [row.task_id for row in await all_tasks(readmodel)] == [task_id]


async def test_what_hinders_the_process_that_fills_the_new_file_is_told(
    log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logs, "_latest", Log(format="json"))
    await submit(log)
    broken = sql.catalogue(sql.texts() | {"audit": sql.texts()["audit"].replace("create table", "make table")})
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        readmodel._ground = replace(readmodel._ground, catalogue=broken)
        with pytest.raises(RebuildFailed, match="ParserException"):
            await readmodel.rebuild()
        assert len(await all_tasks(readmodel)) == 1
    told = [orjson.loads(line) for line in capfd.readouterr().err.splitlines() if "could not be filled" in line]
    assert [("ParserException" in each["exception"], each["level"]) for each in told] == [(True, "error")]


async def test_a_log_made_anew_makes_the_read_model_anew(
    log: EventLog, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    await log.connection.js.delete_stream("QUEUE")
    await log.connection.js.delete_stream(TASKS)
    fresh = await EventLog.connect(log.connection.settings, "/test")
    task_id, _ = await submit(fresh)
    async with reading(fresh, path) as readmodel:
        await readmodel.wait_ready()
        assert [row.task_id for row in await all_tasks(readmodel)] == [task_id]
    await fresh.close()
    assert "made anew" in caplog.text


async def test_poison_in_the_log_is_passed_over(log: EventLog, path: Path) -> None:
    await submit(log)
    poisoned = TaskId(log.ids())
    await log.connection.js.publish(f"bl.task.{poisoned}.submitted.normal.x", b"\xff not json")
    url = log.connection.settings.url
    assert url is not None
    await publish_raw(url, b"bl.task.\xff.done", b"\xff not json")
    await log.connection.js.publish("bl.task.foreign", b"\xff not json")
    task_id, sequence = await submit(log)
    assert sequence == 5
    async with reading(log, path) as readmodel:
        await readmodel.wait(TASKS, sequence)
        assert await readmodel.queries.task(task_id) is not None
        sql = "select about from events where type = 'corrupt' order by sequence"
        table = await readmodel.sandbox.run(sql, [], 10, 10)
        told = [f"bl.task.{poisoned}.submitted.normal.x", r"bl.task.\xff.done", "bl.task.foreign"]
        assert table.rows == [[about] for about in told]


async def test_it_catches_up_after_an_outage(restartable_nats: Any, path: Path, eventually: Eventually) -> None:
    log = await EventLog.connect(Nats(url=restartable_nats.url), "/test")
    async with reading(log, path) as readmodel:
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        await restartable_nats.kill()
        await eventually(lambda: not log.connected)
        assert len(await all_tasks(readmodel)) == 1
        with pytest.raises(ProjectionBehind):
            await readmodel._checkpoints.wait(TASKS, sequence + 1, 0.01)
        await restartable_nats.start()
        await eventually(lambda: log.connected)
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert len(await all_tasks(readmodel)) == 2
    await log.close()


async def test_a_failed_write_is_tried_again(
    log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        projector = readmodel._current.projector
        home = next(each.home for each in readmodel._current.database.applied_to if each.name == "events")
        readmodel._current.database.execute(f"alter table {home}.events rename to away")
        _, sequence = await submit(log)
        await eventually(lambda: projector.state is State.RETRYING)
        readmodel._current.database.cursor().execute(f"alter table {home}.away rename to events")
        await readmodel.wait(TASKS, sequence)
        assert projector.state is State.LIVE
        assert len(await all_tasks(readmodel)) == 1


async def test_what_came_beside_a_transaction_has_gathered_by_its_end(
    log: EventLog, path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    gathered: list[tuple[float, float]] = []

    def due_at(came_at: float, flush_s: float, wrote_at: float, resting_s: float) -> float:
        gathered.append((came_at, wrote_at))
        return pace.due_at(came_at, flush_s, wrote_at, resting_s)

    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        projector = readmodel._current.projector
        monkeypatch.setattr("bitinglip.projections.projector.due_at", due_at)
        async with projector.writing:
            await submit(log)
            await eventually(lambda: gathered and not projector._buffers[TASKS].count)
            _, sequence = await submit(log)
            await eventually(lambda: projector._buffers[TASKS].count)
        await eventually(lambda: readmodel.applied(TASKS) == sequence)
    (quiet_came, quiet_wrote), (came, wrote) = gathered
    assert quiet_came > quiet_wrote
    assert came < wrote


async def test_it_closes_at_any_moment(log: EventLog, path: Path) -> None:
    await submit(log)
    for moment in range(40):
        async with reading(log, path) as readmodel:
            waiting = asyncio.create_task(readmodel.wait_ready())
            await asyncio.wait([waiting], timeout=moment / 4000)
            waiting.cancel()
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()


async def test_two_processes_do_not_share_a_file(log: EventLog, path: Path) -> None:
    async with reading(log, path):
        with pytest.raises(ProjectionFileBusy):
            await ReadModel.open(SETTINGS.model_copy(update={"threads": 2}), path, log)


async def test_the_schema_is_told(log: EventLog, path: Path) -> None:
    async with reading(log, path) as readmodel:
        tables = {table.name: table for table in await readmodel.schema()}
    assert {"events", "tasks", "workers", "models"} <= tables.keys()
    column = tables["tasks"].columns[0]
    assert (column.name, column.type, column.comment) == ("task_id", "varchar", "Identifier of the task (ULID).")
