"""Attempts, queues, usage, latency and errors: the SQL says what the plain fold says, however the log is cut."""

from __future__ import annotations

from datetime import datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage
from bitinglip.projections.database import Database
from bitinglip.projections.writer import write
from tests.unit.attempt_folds import USED, Row, fold_attempts
from tests.unit.projection_support import START, cut, dump, fresh_database, long_stories, prune

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
COUNTS = ("succeeded", "failed", "cancelled", "expired", "dead_lettered", "attempts", "run_us", *USED)
COLUMNS = {
    "attempts": """task_id, attempt, kind, model, lane, coalesce(key_id, ''), worker_id, coalesce(revision, ''),
        assigned_at, coalesce(ended_at, '9999-12-31'), outcome, ended_task,
        coalesce(failure_message, ''), wait_ms, coalesce(run_ms, -1), coalesce(images, -1), coalesce(energy_j, -1),
        last_sequence""",
    "queues": "lane, model, bucket_at, depth, running",
    "latency": "hour_at, model, kind, lane, phase, bucket, attempts, total_us",
    "errors": """hour_at, failure_kind, model, worker_id, node_id, failures, retried, final, last_at, last_message,
        last_task_id""",
}


def told(database: Database) -> dict[str, list[Row]]:
    rows = {name: sorted(database.rows(f"select {columns} from {name}")) for name, columns in COLUMNS.items()}
    usage = database.rows(
        f"select hour_at, coalesce(key_id, ''), model, kind, energy_mj, {', '.join(COUNTS)} from usage"
    )
    rows["usage"] = sorted(
        (row[:4], tuple(sorted((name, count) for name, count in zip(COUNTS, row[5:], strict=True) if count)), row[4])
        for row in usage
    )
    return rows


@SLOW
@given(st.data())
def test_any_beginning_of_a_log_in_any_batches_makes_the_rows_of_the_fold(data: st.DataObject) -> None:
    story = data.draw(long_stories())
    story = story[: data.draw(st.sampled_from([len(story), len(story) - 1, len(story) // 2]))]
    with fresh_database() as database:
        for batch in data.draw(cut(story)):
            write(database, "TASKS", batch)
        rows = told(database)
    expected = fold_attempts(story).rows()
    for name, found in rows.items():
        assert found == expected[name], name


@SLOW
@given(long_stories())
def test_one_batch_an_event_makes_the_rows_of_one_batch_in_all(story: list[RawMessage]) -> None:
    with fresh_database() as database:
        write(database, "TASKS", story)
        whole = dump(database)
    with fresh_database() as database:
        for one in story:
            write(database, "TASKS", [one])
        assert dump(database) == whole


@SLOW
@given(st.data())
def test_pruning_before_between_or_after_makes_the_same_rows(data: st.DataObject) -> None:
    story = data.draw(long_stories())
    now = START + timedelta(days=data.draw(st.integers(1, 3)), minutes=data.draw(st.integers(0, 300)))
    with fresh_database() as database:
        write(database, "TASKS", story)
        fine = dump(database)["queues"]
        prune(database, now)
        late = _without_ticks(database)
    with fresh_database() as database:
        for batch in data.draw(cut(story)):
            write(database, "TASKS", batch)
            prune(database, now)
        assert _without_ticks(database) == late
    for row in late["queues"]:
        until = row[2] + timedelta(seconds=row[3])
        within = [one for one in fine if one[:2] == row[:2] and row[2] <= one[2] < until]
        assert row[4:8] == tuple(sum(one[n] for one in within) for n in range(4, 8)), "flows are added up"
        assert row[8:] == max(within, key=lambda one: one[2])[8:], "the depth is that at the end"
        assert row[3] == (600 if until <= _cut(now) else 10)


def _without_ticks(database: Database) -> dict[str, list[Row]]:
    names = ("attempts", "queues", "queue_flows", "usage", "latency", "errors")
    return {name: rows for name, rows in dump(database).items() if name in names}


def _cut(now: datetime) -> datetime:
    naive = now.replace(tzinfo=None) - timedelta(days=1)
    return naive - timedelta(minutes=naive.minute % 10, seconds=naive.second, microseconds=naive.microsecond)
