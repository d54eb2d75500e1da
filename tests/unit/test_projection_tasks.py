"""The SQL of the tasks projection tells the same story as the Python fold, however the log is cut into batches."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage
from bitinglip.events.task import TaskAssigned, TaskFailed, TaskProgressed, TaskQueued, TaskSubmitted, TaskSucceeded
from bitinglip.ids import TaskId, encode_ulid
from bitinglip.projections.rows import TaskRow
from bitinglip.projections.writer import write
from bitinglip.tasks.state import Task
from tests.unit.projection_support import cut, folded, fresh_database, message, stories, table_of, task_rows

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
ID = "01JZ0000000000000000000000"
FAILURE = TaskFailed.example["failure"] | {"device_bytes": None}


@SLOW
@given(st.data())
def test_every_cutting_makes_the_same_tables(data: st.DataObject) -> None:
    story = data.draw(stories())
    whole = table_of([story])
    assert table_of(data.draw(cut(story))) == whole


@SLOW
@given(stories())
def test_sql_agrees_with_the_fold(story: list[RawMessage]) -> None:
    with fresh_database() as database:
        write(database, "TASKS", story)
        rows = task_rows(database)
    tasks = folded(story)
    assert rows.keys() == tasks.keys()
    for task_id, task in tasks.items():
        assert _told(rows[task_id]) == _folded(task), task_id


@SLOW
@given(st.data())
def test_overlapping_replays_change_nothing(data: st.DataObject) -> None:
    story = data.draw(stories())
    replayed = [story[: index + 3] for index in range(0, len(story), 3)]
    assert table_of([*replayed, story, story]) == table_of([story])


def _told(row: TaskRow) -> dict[str, Any]:
    return {
        "state": row.state,
        "attempt": row.attempt,
        "failures": row.failures,
        "retry_at": row.retry_at,
        "worker_id": row.worker_id,
        "sequence": row.last_sequence,
        "cancel": row.cancel_requested,
        "max_attempts": row.max_attempts,
        "metadata": row.metadata,
        "vram_gb": row.vram_gb,
        "queued_at": row.queued_at if row.state == "queued" else None,
    }


def _folded(task: Task) -> dict[str, Any]:
    return {
        "state": task.state,
        "attempt": task.attempt,
        "failures": task.failures,
        "retry_at": task.retry_at if task.state == "scheduled" else None,
        "worker_id": task.worker_id,
        "sequence": task.sequence,
        "cancel": task.cancel is not None,
        "max_attempts": task.submitted.retry.max_attempts,
        "metadata": task.submitted.metadata,
        "vram_gb": task.vram_gb,
        "queued_at": task.ready_at if task.state == "queued" else None,
    }


def _one(*messages: RawMessage) -> TaskRow:
    with fresh_database() as database:
        for one in messages:
            write(database, "TASKS", [one])
        return task_rows(database)[ID]


SUBMITTED = message(TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID}), 1, about=ID)
ASSIGNED = message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID}), 2, about=ID)


def test_a_queued_that_came_too_late_changes_nothing() -> None:
    late = message(TaskQueued(task_id=ID, attempt=1, reason="scheduled"), 3, about=ID)  # type: ignore[arg-type]
    row, before = _one(SUBMITTED, ASSIGNED, late), _one(SUBMITTED, ASSIGNED)
    assert (row.state, row.queued_at, row.started_at) == ("running", before.queued_at, before.started_at)


def test_what_a_task_waits_for_and_asks_again_is_in_its_row() -> None:
    asked = message(TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID, "retry_of": "T"}), 1, about=ID)
    failed = message(TaskFailed.model_validate(TaskFailed.example | {"task_id": ID}), 3, about=ID)
    queued = message(TaskQueued(task_id=ID, attempt=2, reason="retry"), 4, about=ID)  # type: ignore[arg-type]
    row = _one(asked, ASSIGNED, failed)
    assert (row.retry_of, row.state, row.attempt, row.failure) == ("T", "scheduled", 1, FAILURE)
    assert row.retry_at == datetime.fromisoformat(TaskFailed.example["retry_at"])
    assert _one(asked, ASSIGNED, failed, queued).retry_at is None


@SLOW
@given(st.data())
def test_a_task_lists_those_that_ask_for_it_again(data: st.DataObject) -> None:
    ids = [encode_ulid(n + 1) for n in range(5)]
    of = [None, *[data.draw(st.sampled_from([None, *ids[:n]])) for n in range(1, len(ids))]]
    asked = [TaskSubmitted.example | {"task_id": i, "retry_of": old} for i, old in zip(ids, of, strict=True)]
    story = [message(TaskSubmitted.model_validate(a), n + 1, about=a["task_id"]) for n, a in enumerate(asked)]
    with fresh_database() as database:
        for batch in data.draw(cut(story)):
            write(database, "TASKS", batch)
        rows = task_rows(database)
    for task_id in ids:
        assert rows[task_id].retried_as == [new for new, old in zip(ids, of, strict=True) if old == task_id]


def test_a_task_that_goes_to_a_bigger_card_says_so_and_what_it_requires_by_then() -> None:
    requires = {"vram_gb": 8, "labels": ["eu"]}
    asked = message(
        TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID, "requires": requires}), 1, about=ID
    )
    example = TaskFailed.example | {"task_id": ID}
    small = message(TaskFailed.model_validate(example | {"next_vram_gb": 13.0}), 3, about=ID)
    queued = message(TaskQueued(task_id=ID, attempt=2, reason="bigger_card"), 4, about=ID)  # type: ignore[arg-type]
    again = message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID, "attempt": 2}), 5, about=ID)
    other = message(TaskFailed.model_validate(example | {"attempt": 2}), 6, about=ID)
    story, told = [asked, ASSIGNED, small, queued, again, other], list[tuple[float, str | None]]()
    for end in range(1, len(story) + 1):
        row = _one(*story[:end])
        told.append((row.vram_gb, row.queued_reason))
        assert row.labels == ["eu"]
    whole = [
        (8.0, None),
        (8.0, None),
        (13.0, None),
        (13.0, "bigger_card"),
        (13.0, "bigger_card"),
        (13.0, "bigger_card"),
    ]
    assert told == whole
    assert (_one(SUBMITTED).vram_gb, _one(SUBMITTED).labels) == (0.0, [])


def test_a_row_has_everything_that_its_events_say() -> None:
    failed = message(TaskFailed.model_validate(TaskFailed.example | {"task_id": ID}), 3, about=ID)
    queued = message(TaskQueued(task_id=ID, attempt=2, reason="retry"), 4, about=ID)  # type: ignore[arg-type]
    again = message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID, "attempt": 2}), 5, about=ID)
    example = TaskSucceeded.example | {"task_id": ID, "attempt": 2, "usage": {"input_tokens": 7}}
    row = _one(SUBMITTED, ASSIGNED, failed, queued, again, message(TaskSucceeded.model_validate(example), 6, about=ID))
    assert (row.state, row.attempt, row.failures, row.wait_ms, row.device) == ("succeeded", 2, 1, 12, "cuda:0")
    assert row.failure == FAILURE
    assert row.result == TaskSucceeded.example["result"]
    assert (row.run_ms, row.load_ms, row.input_tokens, row.output_tokens) == (41.5, 0.0, 7, 0)
    assert [row.submitted_at, row.queued_at, row.started_at, row.finished_at] == sorted(
        moment for moment in (row.submitted_at, row.queued_at, row.started_at, row.finished_at) if moment is not None
    )
    assert row.params == {"prompt": "Once"}
    assert row.params_ref is None
    assert row.result_ref is None


def test_progress_alone_in_its_batch_changes_the_progress_alone() -> None:
    before = _one(SUBMITTED, ASSIGNED)
    ticks = [
        message(TaskProgressed(task_id=ID, attempt=1, step=step, total=9, unit="token"), 2 + step, about=ID)  # type: ignore[arg-type]
        for step in (1, 2, 3)
    ]
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED, ASSIGNED])
        write(database, "TASKS", ticks[:2])
        write(database, "TASKS", ticks[2:])
        row = task_rows(database)[ID]
    assert (row.progress_step, row.progress_total, row.progress_unit, row.last_sequence) == (3, 9, "token", 5)
    told = {"progress_step": None, "progress_total": None, "progress_unit": None, "last_sequence": 0}
    assert dataclasses.replace(row, **told) == dataclasses.replace(before, **told)


def test_a_task_that_waits_for_others_is_scheduled_until_it_is_released() -> None:
    first = TaskSubmitted.model_validate(
        TaskSubmitted.example | {"task_id": ID, "depends_on": [ID], "on_failure": "run"}
    )
    released = TaskQueued(task_id=TaskId(ID), attempt=1, reason="released", params={"prompt": "Twice"})
    with fresh_database() as database:
        write(database, "TASKS", [message(first, 1, about=ID)])
        waiting = task_rows(database)[ID]
        write(database, "TASKS", [message(released, 2, about=ID)])
        queued = task_rows(database)[ID]
        [(plain,)] = database.rows("select count(*) from tasks where depends_on is null")
    assert (waiting.state, waiting.depends_on, waiting.on_failure) == ("scheduled", [ID], "run")
    assert (queued.state, queued.params, plain) == ("queued", {"prompt": "Once"}, 0)
    with fresh_database() as database:
        write(database, "TASKS", [message(first.model_copy(update={"depends_on": None}), 1, about=ID)])
        assert database.rows("select count(*) from tasks where depends_on is null and state = 'queued'") == [(1,)]
