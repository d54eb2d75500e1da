"""What the timeline's buckets tell is what the state was at their ends."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from datetime import timedelta
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage
from bitinglip.events.task import TaskAssigned, TaskFailed, TaskQueued, TaskSubmitted
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.gateway.history import filled
from bitinglip.ids import TaskId, encode_ulid
from bitinglip.projections import queries
from bitinglip.projections.database import Database
from bitinglip.projections.moment import Moment
from bitinglip.projections.past import travelled
from bitinglip.projections.writer import write
from tests.unit.projection_support import START, cut, fresh_database, long_stories, message, stories

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
ENDS = {"task.succeeded": "succeeded", "task.cancelled": "cancelled", "task.dead_lettered": "dead_lettered"}
MS = timedelta(milliseconds=1)
Log = list[Seq[RawMessage]]
"""Messages in batches."""


def _in_step(story: list[RawMessage]) -> list[RawMessage]:
    """Return a story whose events happened as many milliseconds after the start as their sequences say."""
    found: list[RawMessage] = []
    for one in story:
        at = START + one.sequence * MS
        payload = orjson.dumps(orjson.loads(one.payload) | {"time": at}, option=orjson.OPT_UTC_Z)
        found.append(one._replace(payload=payload, time_ns=int(at.timestamp() * 1e6) * 1_000))
    return found


@st.composite
def _logs(draw: Any) -> Log:
    """Draw a story, some with many attempts, as it came in: in one batch or several."""
    return draw(cut(_in_step(draw(st.one_of(stories(), long_stories())))))


def _buckets(database: Database, begin: int, buckets: int, width: int, silence: timedelta = MS) -> list[dict[str, Any]]:
    """Ask for buckets; all numbers are milliseconds after the start."""
    start = START.replace(tzinfo=None)
    params = {
        "begin": start + begin * MS, "until": start + (begin + buckets * width) * MS, "width_us": width * 1_000,
        "buckets": buckets, "alive_since": start, "silence_s": silence.total_seconds(),
    }  # fmt: skip
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for bucket, what, number in database.rows(queries.text("timeline"), params):
        found[bucket][what] = number
    return list(filled(found, START + begin * MS, width * MS, buckets))


@SLOW
@given(_logs(), st.integers(0, 60), st.integers(1, 12), st.integers(1, 12))
def test_levels_are_the_counts_of_that_moment(log: Log, begin: int, buckets: int, width: int) -> None:
    with fresh_database() as database:
        for batch in log:
            write(database, "TASKS", batch)
        told = _buckets(database, begin, buckets, width)
        for bucket in told:
            last = (bucket["end"] - START) // MS - 1  # an event at its very end is in the next one
            with travelled(database, Moment(bucket["end"], {"TASKS": last})) as state:
                counts: Mapping[str, int] = state.counts()
            assert (bucket["waiting"], bucket["running"]) == (counts.get("queued", 0), counts.get("running", 0)), last


def test_a_timer_that_fires_late_makes_nobody_wait() -> None:
    task = TaskId(encode_ulid(1))
    failed = TaskFailed.example | {"task_id": task, "attempt": 1, "retry_at": START + timedelta(hours=1)}
    log = [
        message(
            TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task, "run_at": START}), 1, about=task
        ),
        message(TaskQueued(task_id=task, attempt=1, reason="scheduled"), 2, about=task),
        message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task, "attempt": 1}), 3, about=task),
        message(TaskFailed.model_validate(failed), 4, about=task),
        message(TaskQueued(task_id=task, attempt=1, reason="scheduled"), 5, about=task),
        message(TaskQueued(task_id=task, attempt=2, reason="retry"), 6, about=task),
        message(TaskQueued(task_id=task, attempt=2, reason="stranded"), 7, about=task),
    ]
    with fresh_database() as database:
        write(database, "TASKS", log)
        told = _buckets(database, 0, 9, 1)
    assert [bucket["waiting"] for bucket in told] == [0, 0, 1, 0, 0, 0, 1, 1, 1]
    assert [bucket["running"] for bucket in told] == [0, 0, 0, 1, 0, 0, 0, 0, 0]


@SLOW
@given(_logs(), st.integers(0, 60), st.integers(1, 12), st.integers(1, 12))
def test_counts_are_those_of_the_events(log: Log, begin: int, buckets: int, width: int) -> None:
    with fresh_database() as database:
        for batch in log:
            write(database, "TASKS", batch)
        told = _buckets(database, begin, buckets, width)
        known = {task_id for (task_id,) in database.rows("select task_id from tasks")}
        events = database.rows("select sequence, type, about from events where stream = 'TASKS'")
    for number, bucket in enumerate(told):
        first, end = begin + number * width, begin + (number + 1) * width
        seen = Counter(kind for at, kind, about in events if first <= at < end and about in known)
        assert bucket["arrived"] == seen["task.submitted"]
        assert bucket["started"] == seen["task.assigned"]
        assert {state: bucket[state] for state in ENDS.values()} == {s: seen[kind] for kind, s in ENDS.items()}


def test_workers_are_online_from_their_start_to_their_stop_or_their_silence() -> None:
    def told(cls: Any, at: int, name: str) -> RawMessage:
        return message(cls.model_validate(cls.example | {"worker_id": name}), at, about=name)

    log = [
        told(WorkerStarted, 10, "a"), told(WorkerStarted, 12, "silent"), told(WorkerHeartbeat, 20, "silent"),
        told(WorkerStopped, 30, "a"), told(WorkerStarted, 50, "a"),
    ]  # fmt: skip
    with fresh_database() as database:
        write(database, "WORKERS", log)
        [(home,)] = database.rows("select schema_name from duckdb_tables() where table_name = 'workers'")
        database.execute(f"update {home}.workers set seen_at = seen_at + interval 1 hour where worker_id = 'a'")
        start = START.replace(tzinfo=None)
        params = {"begin": start, "until": start + 70 * MS, "width_us": 10_000, "buckets": 7, "silence_s": 0.025,
                  "alive_since": start + timedelta(minutes=1)}  # fmt: skip
        rows = database.rows(queries.text("timeline"), params)
    found = {bucket: {what: number} for bucket, what, number in rows}
    assert [bucket["workers"] for bucket in filled(found, START, 10 * MS, 7)] == [0, 2, 2, 1, 0, 1, 1]
