"""Setbacks: the SQL keeps of a task's failed attempts what the fold says, however the log is cut."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from datetime import datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.task import TaskAssigned, TaskFailed
from bitinglip.projections.writer import write
from bitinglip.tasks.state import Task, evolve
from tests.unit.projection_support import STREAM, cut, fresh_database, long_stories

SLOW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def _setbacks(story: Seq[RawMessage]) -> list[tuple[Any, ...]]:
    """Fold a story, event by event."""
    tasks: dict[str, Task | None] = {}
    ready: dict[str, datetime] = {}
    started: dict[str, datetime] = {}
    found: list[tuple[Any, ...]] = []
    for one in story:
        recorded, task_id = decode(one, STREAM), one.subject.split(".")[2]
        event, at, before = recorded.event, recorded.time.replace(tzinfo=None), tasks.get(task_id)
        after = tasks[task_id] = evolve(before, event, recorded.sequence, recorded.time)
        if after is None:
            continue
        if after.state == "queued" and (before is None or before.state != "queued"):
            ready[task_id] = at
        if isinstance(event, TaskAssigned):
            started[task_id] = at
        if isinstance(event, TaskFailed) and event.retry_at is not None:
            found.append((task_id, event.attempt, ready.get(task_id), started[task_id], at))
    return sorted(found, key=lambda row: row[:2])


@SLOW
@given(st.data())
def test_the_sql_keeps_what_the_fold_says(data: st.DataObject) -> None:
    story = data.draw(long_stories())
    with fresh_database() as database:
        for batch in data.draw(cut(story)):
            write(database, STREAM, batch)
        assert database.rows("select * from setbacks order by all") == _setbacks(story)
