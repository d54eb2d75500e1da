"""A task's row made in Python is the one that SQL makes."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

from bitinglip.events.envelope import RawMessage
from bitinglip.projections.taskrow import row_of
from bitinglip.projections.writer import write
from tests.unit.projection_support import fresh_database, stories, task_rows

SLOW = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@SLOW
@given(stories())
def test_it_is_the_row_that_sql_makes(story: list[RawMessage]) -> None:
    with fresh_database() as database:
        write(database, "TASKS", story)
        rows = task_rows(database)
    ids = {message.subject.split(".")[2] for message in story}
    made = {task_id: row_of(one for one in story if one.subject.split(".")[2] == task_id) for task_id in ids}
    assert {task_id: row for task_id, row in made.items() if row is not None} == rows


def test_a_task_without_its_beginning_has_no_row() -> None:
    assert row_of([]) is None
