"""The state at a moment, from the whole log, is what a read model of the log up to that moment has."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.errors import PastTooLarge
from bitinglip.events import node as nodes
from bitinglip.events import worker as workers
from bitinglip.events.batch import BatchClosed, BatchCompleted, BatchExtended, BatchOpened
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.registry import REGISTRY, Event
from bitinglip.events.task import TaskQueued, TaskSubmitted, TaskSucceeded
from bitinglip.gateway import pastviews
from bitinglip.ids import TaskId, encode_ulid
from bitinglip.projections import past, queries, sql
from bitinglip.projections.batch import to_arrow
from bitinglip.projections.database import Database
from bitinglip.projections.moment import Moment
from bitinglip.projections.past import Past, travelled
from bitinglip.projections.query import TaskFilter
from bitinglip.projections.rows import BatchRow, ModelUsageRow, NodeRow, TaskRow, WorkerRow, reader
from bitinglip.projections.writer import write
from tests.unit.projection_support import START, cut, fresh_database, message, stories, task_rows

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
ID, OTHER = encode_ulid(1), encode_ulid(2)
WORKERS: tuple[type[Event], ...] = (
    workers.WorkerStarted, workers.WorkerHeartbeat, workers.WorkerHeartbeat, workers.WorkerEngineExited,
    workers.WorkerModelsChanged, workers.WorkerDrained, workers.WorkerUndrained, workers.WorkerStopped,
)  # fmt: skip
NODES: tuple[type[Event], ...] = (
    nodes.NodeStarted, nodes.NodeHeartbeat, nodes.NodeHeartbeat, nodes.NodeLabelled, nodes.NodeDrained,
    nodes.NodeUndrained, nodes.NodeWorkerExited, nodes.NodeStopped,
)  # fmt: skip


def at(sequence: int, stream: str = "TASKS") -> Moment:
    """Return the moment right after an event of `projection_support.message`."""
    return Moment(START + timedelta(milliseconds=sequence), {stream: sequence})


def base_of(database: Database, name: str) -> str:
    """Return the table behind a view."""
    [(home,)] = database.rows("select schema_name from duckdb_tables() where table_name = ?", [name])
    return f"{home}.{name}"


def until(messages: list[RawMessage], sequence: int) -> list[RawMessage]:
    return [one for one in messages if one.sequence <= sequence]


def all_tasks(state: Past, chosen: TaskFilter | None = None) -> list[TaskRow]:
    """Return what all pages have."""
    rows: list[TaskRow] = []
    chosen = chosen or TaskFilter(limit=2)
    while True:
        page, cursor = state.tasks(chosen)
        rows += page
        if cursor is None:
            return rows
        chosen = replace(chosen, cursor=cursor)


@st.composite
def task_logs(draw: Any) -> list[RawMessage]:
    """Draw a story of tasks, with one more that asks for one of them again somewhere in it."""
    story = draw(stories())
    sequence = draw(st.integers(0, len(story) * 3)) * 1_000 + 1
    spread = [one._replace(sequence=one.sequence * 1_000) for one in story]
    again = TaskSubmitted.example | {"task_id": encode_ulid(99), "retry_of": ID}
    return sorted([*spread, message(TaskSubmitted.model_validate(again), sequence, about=encode_ulid(99))])


@SLOW
@given(st.data())
def test_tasks_are_as_they_were(data: st.DataObject) -> None:
    log = data.draw(task_logs())
    sequence = data.draw(st.integers(0, log[-1].sequence))
    with fresh_database() as database:
        write(database, "TASKS", *([until(log, sequence)] if until(log, sequence) else []))
        expected = task_rows(database)
        counts = dict(database.rows(queries.text("counts")))
        usage = list(map(reader(ModelUsageRow), database.rows(queries.text("model_usage"))))
    with fresh_database() as database:
        for batch in data.draw(cut(log)):
            write(database, "TASKS", batch)
        with travelled(database, at(sequence)) as state:
            assert {row.task_id: row for row in all_tasks(state)} == expected
            assert {task_id: state.task(task_id) for task_id in expected} == expected
            assert state.counts() == counts
            assert sorted(state.model_usage().values(), key=str) == sorted(usage, key=str)


@SLOW
@given(st.data())
def test_pages_and_filters_of_the_past_work_as_those_of_now(data: st.DataObject) -> None:
    log = data.draw(task_logs())
    sequence = data.draw(st.integers(0, log[-1].sequence))
    chosen = TaskFilter(
        states=data.draw(st.sampled_from([(), ("queued",), ("running", "scheduled"), ("succeeded", "dead_lettered")])),
        metadata=data.draw(st.sampled_from([{}, {"a": "b"}])),
        failure=data.draw(st.sampled_from([None, "engine_crashed"])),
        limit=data.draw(st.integers(1, 3)),
    )
    with fresh_database() as database:
        write(database, "TASKS", *([until(log, sequence)] if until(log, sequence) else []))
        params = replace(chosen, limit=1_000).params()
        expected = list(map(reader(TaskRow), database.rows(queries.text("tasks"), params)))
    with fresh_database() as database:
        write(database, "TASKS", log)
        with travelled(database, at(sequence)) as state:
            assert all_tasks(state, chosen) == expected


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_page_makes_no_more_tasks_than_it_needs_and_none_is_lost(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "WINDOW", window)
    monkeypatch.setattr(past, "CHUNK", 7)
    ids = [encode_ulid(number + 1) for number in range(40)]
    log = [message(_submitted(task_id), number + 1, about=task_id) for number, task_id in enumerate(ids)]
    ends = [message(_succeeded(task_id), 100 + number, about=task_id) for number, task_id in enumerate(ids)]
    with fresh_database() as database:
        write(database, "TASKS", [*log, *ends])
        with travelled(database, at(119)) as state:
            queued = all_tasks(state, TaskFilter(states=("queued",), limit=3))
            ended = all_tasks(state, TaskFilter(states=("succeeded",), limit=3))
            assert [row.task_id for row in queued] == ids[:19:-1]
            assert [row.task_id for row in ended] == ids[19::-1]
            assert state.counts() == {"queued": 20, "succeeded": 20}


def test_a_state_of_too_many_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past, "MOST", 1)
    log = [message(_submitted(task_id), number, about=task_id) for number, task_id in enumerate([ID, OTHER], 1)]
    ends = [message(_succeeded(task_id), number, about=task_id) for number, task_id in enumerate([ID, OTHER], 3)]
    with fresh_database() as database:
        write(database, "TASKS", [*log, *ends])
        with travelled(database, at(2)) as state, pytest.raises(PastTooLarge, match="2 tasks"):
            state.counts()
        with travelled(database, at(3)) as state:
            assert state.counts() == {"queued": 1, "succeeded": 1}


def test_queues_are_counted_as_they_were() -> None:
    log = [message(_submitted(ID), 1, about=ID), message(_submitted(OTHER, lane="batch"), 2, about=OTHER)]
    ends = [message(_succeeded(task_id), number, about=task_id) for number, task_id in enumerate([ID, OTHER], 3)]
    with fresh_database() as database:
        write(database, "TASKS", [*log, *ends])
        with travelled(database, at(3)) as state:
            [(lane, model, waiting, running, since)] = state.queues()
            assert state.ended_since(START) == {("normal", model): 1}
        assert (lane, waiting, running) == ("batch", 1, 0)
        assert since == (START + timedelta(milliseconds=2)).replace(tzinfo=None)


@st.composite
def batch_logs(draw: Any) -> list[RawMessage]:
    """Draw the log of two batches with a task each."""
    steps: list[tuple[str, Event]] = []
    for batch_id, task_id in (("B1", ID), ("B2", OTHER)):
        told: list[Event] = [
            BatchOpened.model_validate(BatchOpened.example | {"batch_id": batch_id}),
            _submitted(task_id, batch_id=batch_id),
            BatchExtended.model_validate(BatchExtended.example | {"batch_id": batch_id, "tasks": 1}),
            BatchClosed.model_validate(BatchClosed.example | {"batch_id": batch_id, "tasks": 1}),
            _succeeded(task_id),
            BatchCompleted.model_validate(BatchCompleted.example | {"batch_id": batch_id}),
        ]
        places = sorted(draw(st.lists(st.integers(0, 99), min_size=6, max_size=6)))
        steps += [(f"{place:02}", each) for place, each in zip(places, told, strict=True)]
    ordered = [each for _, each in sorted(steps, key=lambda step: step[0])]
    return [message(e, n + 1, about=getattr(e, "batch_id", None) if e.type.startswith("batch") else e.task_id)  # type: ignore[attr-defined]
            for n, e in enumerate(ordered)]  # fmt: skip


@SLOW
@given(batch_logs(), st.integers(0, 12))
def test_batches_are_as_they_were(log: list[RawMessage], sequence: int) -> None:
    params = {"batch_id": None, "limit": 10, "cursor": None}
    with fresh_database() as database:
        write(database, "TASKS", *([log[:sequence]] if sequence else []))
        expected = list(map(reader(BatchRow), database.rows(queries.text("batches"), params)))
    with fresh_database() as database:
        write(database, "TASKS", log)
        with travelled(database, at(sequence)) as state:
            assert state.batches(10) == expected


@st.composite
def machine_logs(draw: Any) -> list[RawMessage]:
    """Draw what two workers and two nodes said."""
    log: list[RawMessage] = []
    for number in range(1, draw(st.integers(2, 30))):
        name = draw(st.sampled_from(["a", "b"]))
        if draw(st.booleans()):
            cls, changes = draw(st.sampled_from(WORKERS)), {"worker_id": name}
            changes |= {"done": draw(st.integers(0, 9))} if cls is workers.WorkerHeartbeat else {}
        else:
            cls, changes = draw(st.sampled_from(NODES)), {"node_id": name}
        log.append(message(cls.model_validate(cls.example | changes), number, about=name))
    return log


@SLOW
@given(st.data())
def test_workers_and_nodes_are_as_they_were(data: st.DataObject) -> None:
    log = data.draw(machine_logs())
    sequence = data.draw(st.integers(0, len(log)))
    with fresh_database() as database:
        write(database, "WORKERS", *([log[:sequence]] if sequence else []))
        expected = _machines(database)
    with fresh_database() as database:
        for batch in data.draw(cut(log)):
            write(database, "WORKERS", batch)
        with travelled(database, at(sequence, "WORKERS")) as state:
            assert ([row for row, _ in state.workers()], [row for row, _ in state.nodes()]) == expected


def _machines(database: Database) -> tuple[list[WorkerRow], list[NodeRow]]:
    return (
        list(map(reader(WorkerRow), database.rows(queries.text("workers")))),
        list(map(reader(NodeRow), database.rows(queries.text("nodes")))),
    )


def test_a_worker_whose_heartbeats_are_gone_says_so() -> None:
    beat = workers.WorkerHeartbeat.model_validate(workers.WorkerHeartbeat.example | {"done": 5})
    log = [message(workers.WorkerStarted.model_validate(workers.WorkerStarted.example), 1, about="rig-1-0")]
    log += [message(beat, number, about="rig-1-0") for number in (2, 3)]
    with fresh_database() as database:
        write(database, "WORKERS", log)
        with travelled(database, at(2, "WORKERS")) as state:
            [(row, known)] = state.workers()
            assert (row.done, known) == (5, True)
        database.execute(f"delete from {base_of(database, 'events')} where type = 'worker.heartbeat' and sequence = 2")
        with travelled(database, at(2, "WORKERS")) as state:
            [(row, known)] = state.workers()
            assert (row.done, row.state, known) == (0, "started", False)
        with travelled(database, at(3, "WORKERS")) as state:
            [(row, known)] = state.workers()
            assert (row.done, known) == (5, True)


@SLOW
@given(stories())
def test_what_is_staged_from_events_is_what_was_staged_from_messages(story: list[RawMessage]) -> None:
    examples = [message(REGISTRY[name].model_validate(REGISTRY[name].example), 1_000 + number, about="x", causation="c")
                for number, name in enumerate(sorted(REGISTRY))]  # fmt: skip
    log = [*story, *examples]
    batch, staging = "select * from batch order by sequence", sql.CATALOGUE["tasks"].staging
    with fresh_database() as database:
        write(database, "TASKS", log)
        database._prepared.offer("incoming", to_arrow([log]))
        database.stage("TASKS", staging)
        staged = database.rows(batch)
        assert len(staged) == len(log)
        with database.read_only():
            blocks = past.blocks(database.home)
            database.execute(blocks["payloads"])
            database.execute(
                "create or replace temp table chosen as select distinct about, 0::ubigint as first from events"
            )
            since = START.replace(tzinfo=None)
            params = {"stream": "TASKS", "first": 0, "last": 10**9, "ticks": [], "ticks_since": since}
            database.gather(blocks["incoming"], params)
            database.stage("TASKS", staging)
            assert database.rows(batch) == staged


@SLOW
@given(stories(), st.integers(0, 50))
def test_the_history_is_what_the_log_has(story: list[RawMessage], sequence: int) -> None:
    with fresh_database() as database:
        write(database, "TASKS", *([story] if story else []))
        with travelled(database, at(sequence)) as state:
            expected = [decode(one, "TASKS") for one in until(story, sequence)]
            found = [
                replace(one, recorded_at=told.recorded_at)
                for one, told in zip(state.history("TASKS"), expected, strict=True)
            ]
            assert found == [replace(one, subject="") for one in expected]
            assert state.history("TASKS", ID) == [one for one in state.history("TASKS") if _about(one.event) == ID]


def test_nothing_is_left_of_a_journey() -> None:
    with fresh_database() as database:
        write(database, "TASKS", [message(_submitted(ID), 1, about=ID), message(_succeeded(ID), 2, about=ID)])
        before = database.rows("select table_name from duckdb_tables() order by all")
        for _ in range(2):
            with travelled(database, at(1)) as state:
                assert [row.state for row in all_tasks(state)] == ["queued"]
        assert database.rows("select table_name from duckdb_tables() order by all") == before
        assert [row.state for row in task_rows(database).values()] == ["succeeded"]


def test_who_gives_up_is_heard() -> None:
    def give_up() -> None:
        raise InterruptedError

    with fresh_database() as database, travelled(database, at(1), give_up) as state, pytest.raises(InterruptedError):
        state.counts()


def _about(event: Event) -> str:
    return getattr(event, "task_id", "")


def _submitted(task_id: str, **changes: Any) -> TaskSubmitted:
    return TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id} | changes)


def _succeeded(task_id: str) -> TaskSucceeded:
    return TaskSucceeded.model_validate(TaskSucceeded.example | {"task_id": task_id})


def test_a_late_queued_is_passed_over_as_it_was() -> None:
    late = TaskQueued(task_id=TaskId(ID), attempt=1, reason="scheduled")
    log = [message(_submitted(ID), 1, about=ID), message(late, 2, about=ID), message(_succeeded(ID), 3, about=ID)]
    with fresh_database() as database:
        write(database, "TASKS", log)
        with travelled(database, at(2)) as state:
            row = state.task(ID)
    assert row is not None
    assert (row.state, row.queued_at) == ("queued", START + timedelta(milliseconds=1))


def test_who_was_silent_by_then_is_gone_unless_nothing_is_known() -> None:
    told: list[Event] = [
        workers.WorkerStarted.model_validate(workers.WorkerStarted.example),
        nodes.NodeStarted.model_validate(nodes.NodeStarted.example),
        workers.WorkerHeartbeat.model_validate(workers.WorkerHeartbeat.example),
        nodes.NodeHeartbeat.model_validate(nodes.NodeHeartbeat.example),
    ]
    abouts = ("rig-1-0", "rig-1", "rig-1-0", "rig-1")
    log = [message(e, n, about=about) for n, (e, about) in enumerate(zip(told, abouts, strict=True), 1)]
    later = [message(e, n + 1_000_000, about=about) for n, (e, about) in enumerate(zip(told, abouts, strict=True))]
    silence = timedelta(seconds=60)
    with fresh_database() as database:
        write(database, "WORKERS", [*log, *later[2:]])
        for seconds, states in ((30, ("started", "online")), (90, ("gone", "offline"))):
            moment = Moment(START + timedelta(seconds=seconds), {"WORKERS": 4})
            with travelled(database, moment) as state:
                [worker], [node] = pastviews.workers(state, silence), pastviews.nodes(state, silence)
            assert (worker["state"], node["state"], worker["running"]) == (*states, 1)
        database.execute(f"delete from {base_of(database, 'events')} where type like '%.heartbeat' and sequence < 100")
        with travelled(database, Moment(START + timedelta(seconds=90), {"WORKERS": 4})) as state:
            [worker], [node] = pastviews.workers(state, silence), pastviews.nodes(state, silence)
    assert (worker["state"], worker["seen_at"], worker["running"], worker["pid"]) == ("started", None, None, 4711)
    assert (node["state"], node["seen_at"], node["memory_used_bytes"]) == ("online", None, None)
