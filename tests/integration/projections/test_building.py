"""A projection whose SQL has changed is made anew in the background, while the old version serves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import ProjectionBuilding, ProjectionNotFound
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.subjects import encode_token
from bitinglip.events.task import TaskAssigned, TaskProgressed, TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.projections import sql
from bitinglip.projections.readmodel import ReadModel, VersionState
from bitinglip.projections.sql import Catalogue
from bitinglip.settings import Projections

SETTINGS = Projections(memory_limit="200MB", read_wait_s=20.0)
ROUTE = ("normal", encode_token("openai-community/gpt2"))
Eventually = Callable[..., Awaitable[Any]]
COUNTS = """-- Grain: one row per model that was asked for.
-- streams: TASKS

-- name: table
create table self.asked (model varchar primary key, tasks bigint not null);
comment on table self.asked is 'Models; one row per model.';
comment on column self.asked.model is 'Reference.';
comment on column self.asked.tasks is 'Tasks.';

-- name: apply
-- when: task.submitted
insert into self.asked
select data ->> '$.model', count(*) from batch where type = 'task.submitted' group by all
on conflict do update set tasks = tasks + excluded.tasks;
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.duckdb"


def changed(**texts: str | None) -> Catalogue:
    """Return the catalogue with other files; none takes one away."""
    return sql.catalogue({name: text for name, text in (sql.texts() | texts).items() if text is not None})


def other_tasks() -> str:
    """Return `tasks.sql` with one more column, `novel`, that is the task's id in capitals."""
    text = sql.texts()["tasks"]
    text = text.replace("    state_key integer\n);", "    state_key integer,\n    novel varchar\n);")
    text = text.replace("-- name: change", "comment on column self.tasks.novel is 'New.';\n\n-- name: change")
    return text.replace(
        "submitted_sequence, last_sequence, state_key\nfrom",
        "submitted_sequence, last_sequence, state_key, upper(task_id)\nfrom",
    )


@asynccontextmanager
async def reading(log: EventLog, path: Path, catalogue: Catalogue = sql.CATALOGUE) -> AsyncIterator[ReadModel]:
    readmodel = await ReadModel.open(SETTINGS, path, log, catalogue)
    try:
        yield readmodel
    finally:
        await readmodel.close()


async def submit(log: EventLog, **changes: Any) -> tuple[TaskId, int]:
    task_id = TaskId(log.ids())
    event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id} | changes)
    return task_id, await log.append(log.task_append(event, 0, route=ROUTE))


async def ask(readmodel: ReadModel, query: str) -> list[list[Any]]:
    return (await readmodel.sandbox.run(query, [], 10, 1000)).rows


async def states(readmodel: ReadModel, name: str) -> list[VersionState]:
    return [state for state in await readmodel.projections() if state.projection == name]


async def is_made(readmodel: ReadModel) -> bool:
    return all(state.serving and state.current for state in await readmodel.projections())


async def test_the_old_version_serves_while_the_new_one_is_made(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    first, _ = await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    async with reading(log, path, changed(tasks=other_tasks())) as readmodel:
        async with readmodel._current.projector.writing:
            assert [(state.serving, state.current) for state in await states(readmodel, "tasks")] == [
                (True, False), (False, True)
            ]  # fmt: skip
            assert await ask(readmodel, "select task_id, novel from tasks") == [[first, None]]
            assert await readmodel.queries.counts() == {"queued": 1}
            tables = {table.name: table for table in await readmodel.schema()}
            assert tables["tasks"].columns[-1].comment == "New."
        second, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await ask(readmodel, "select task_id from tasks order by 1") == [[first], [second]]
        await eventually(lambda: is_made(readmodel))
        third, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await ask(readmodel, "select task_id, novel from tasks order by 1") == [
            [task_id, task_id.upper()] for task_id in (first, second, third)
        ]
        assert (await ask(readmodel, "select count(*) from events"))[0] == [3]


async def test_a_new_projection_is_waited_for(log: EventLog, path: Path, eventually: Eventually) -> None:
    for _ in range(3):
        await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    async with reading(log, path, changed(asked=COUNTS)) as readmodel:
        async with readmodel._current.projector.writing:
            with pytest.raises(ProjectionBuilding, match="asked"):
                await ask(readmodel, "from asked")
        await eventually(lambda: is_made(readmodel))
        assert await ask(readmodel, "from asked") == [["openai-community/gpt2", 3]]
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await ask(readmodel, "from asked") == [["openai-community/gpt2", 4]]


async def test_a_new_part_is_waited_for_and_what_was_there_serves(
    log: EventLog, path: Path, eventually: Eventually
) -> None:
    await submit(log)
    before = sql.texts()["tasks"].replace("-- parts: setbacks\n", "")
    async with reading(log, path, changed(tasks=before, setbacks=None)) as readmodel:
        await readmodel.wait_ready()
    async with reading(log, path) as readmodel:
        async with readmodel._current.projector.writing:
            assert await readmodel.queries.counts() == {"queued": 1}
            with pytest.raises(ProjectionBuilding, match="tasks"):
                await ask(readmodel, "from setbacks")
        await eventually(lambda: is_made(readmodel))
        assert await ask(readmodel, "from setbacks") == []


async def test_a_projection_that_is_no_more_is_dropped(log: EventLog, path: Path, eventually: Eventually) -> None:
    await submit(log)
    async with reading(log, path, changed(asked=COUNTS)) as readmodel:
        await readmodel.wait_ready()
        assert await ask(readmodel, "select tasks from asked") == [[1]]
    async with reading(log, path) as readmodel:
        assert "asked" not in {table.name for table in await readmodel.schema()}
        assert await states(readmodel, "asked") == []
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await readmodel.queries.counts() == {"queued": 2}


async def test_all_are_made_anew_when_the_staging_changes(log: EventLog, path: Path, eventually: Eventually) -> None:
    """The old versions are still applied, by the staging that they know."""
    await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
    staging = sql.texts()["batch"].replace("field[2] as type,", "field[2] as type, 7 as novelty,")
    counting = COUNTS.replace("count(*) from batch", "count(*) * any_value(novelty) from batch")
    async with reading(log, path, changed(batch=staging, asked=counting)) as readmodel:
        await readmodel.wait_ready()
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        assert await readmodel.queries.counts() == {"queued": 2}
        await eventually(lambda: is_made(readmodel))
        assert await readmodel.queries.counts() == {"queued": 2}
        assert await ask(readmodel, "select tasks from asked") == [[14]]


async def test_an_old_version_that_cannot_be_applied_any_more_stays_as_it_is(
    log: EventLog, path: Path, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    """Its SQL asks for something that is not handed to it now."""
    former = sql.texts()["batch"].replace("            time_ns,\n", "            time_ns, payload as kept,\n")
    await submit(log)
    async with reading(log, path, changed(batch=former)) as readmodel:
        await readmodel.wait_ready()
        database = readmodel._current.database.cursor()
        database.execute("update projection_versions set stage = replace(stage, 'payload as kept', 'nothing as kept')")
        database.close()
    async with reading(log, path) as readmodel:
        _, sequence = await submit(log)
        await readmodel.wait(TASKS, sequence)
        await eventually(lambda: is_made(readmodel))
        assert await readmodel.queries.counts() == {"queued": 2}
    assert "stays as it is" in caplog.text


async def test_one_projection_is_made_anew_when_asked(log: EventLog, path: Path, eventually: Eventually) -> None:
    for _ in range(4):
        await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait_ready()
        home = next(version.home for version in readmodel._current.database.applied_to if version.name == "tasks")
        readmodel._current.database.cursor().execute(f"delete from {home}.tasks")
        assert await readmodel.queries.counts() == {}
        await readmodel.rebuild_one("tasks")
        await eventually(lambda: readmodel.queries.counts())
        assert await readmodel.queries.counts() == {"queued": 4}
        assert [(state.serving, state.current) for state in await states(readmodel, "tasks")] == [(True, True)]
        with pytest.raises(ProjectionNotFound):
            await readmodel.rebuild_one("nothing")


async def test_look_ups_go_on_while_it_is_made(log: EventLog, path: Path) -> None:
    task_id, sequence = await submit(log)
    async with reading(log, path) as readmodel:
        await readmodel.wait(TASKS, sequence)
        await readmodel.wait_ready()
        for _ in range(5):
            homes = {version.home for version in readmodel._current.database.applied_to}
            await readmodel.rebuild_one("tasks")
            looked = 0
            while {version.home for version in readmodel._current.database.applied_to} == homes:
                row, (_, sequence) = await asyncio.gather(readmodel.queries.task(task_id), submit(log))
                await readmodel.wait(TASKS, sequence)
                assert row is not None
                looked += 1
            assert looked
        found = await ask(readmodel, "select count(*), count(distinct task_id), max(last_sequence) from tasks")
        assert found == [[sequence, sequence, sequence]]


async def test_ticks_leave_a_live_read_model(log: EventLog, path: Path) -> None:
    settings = SETTINGS.model_copy(update={"keep_ticks_s": 0.001})
    task_id, sequence = await submit(log)
    ticked = TaskProgressed.model_validate(TaskProgressed.example | {"task_id": task_id})
    assigned = TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task_id})
    sequence = await log.append(log.task_append(assigned, sequence))
    sequence = await log.append(log.task_append(ticked, sequence))
    readmodel = await ReadModel.open(settings, path, log)
    try:
        await readmodel.wait(TASKS, sequence)
        await readmodel.wait_ready()
        await readmodel.prune()
        assert await ask(readmodel, "select type from events order by sequence") == [
            ["task.submitted"], ["task.assigned"]
        ]  # fmt: skip
        row = await readmodel.queries.task(task_id)
        assert row is not None
        assert row.progress_step == TaskProgressed.example["step"]
    finally:
        await readmodel.close()
