"""The SQL of batches tells the same story as the Python fold, however the log is cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import orjson
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.batch import BatchClosed, BatchCompleted, BatchEvent, BatchExtended, BatchOpened
from bitinglip.events.envelope import RawMessage, Recorded, decode
from bitinglip.ids import TaskId
from bitinglip.projections import queries
from bitinglip.projections.database import Database
from bitinglip.projections.rows import BatchRow, reader
from bitinglip.projections.writer import write
from bitinglip.tasks.batches import Batch, fold_batch
from bitinglip.tasks.state import Task
from tests.unit.projection_support import Story, cut, folded, fresh_database, message, table_of

SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
IDS = ("B1", "B2")
read_row = reader(BatchRow)


class BatchStory(Story):
    """The log of tasks of which some were asked for in batches."""

    def __init__(self, choose: Callable[[Seq[Any]], Any]) -> None:
        super().__init__(choose, 5)
        self._of: dict[str, str] = {}
        self._batches: dict[str, Batch | None] = dict.fromkeys(IDS)

    def batch_step(self) -> None:
        """Let something happen to one of the batches."""
        batch = self._batches[name := self._choose(IDS)]
        if batch is None:
            metadata = {"n": name}
            self._append(BatchOpened(batch_id=name, name=f"é{name}", metadata=metadata, request_sha256="0"))
        elif batch.closed is None:
            if batch.tasks and self._choose([False, True]):
                self._append(BatchClosed(batch_id=name, tasks=batch.tasks))
            else:
                self._extend(batch)
        elif batch.completed is None and self._choose([False] * 4 + [True]):
            self._append(BatchCompleted(batch_id=name, tasks=batch.tasks, counts={}))

    def _extend(self, batch: Batch) -> None:
        free = [task_id for task_id, task in self._tasks.items() if task is None]
        chosen = free[: self._choose(range(3))]
        for task_id in chosen:
            event = self._submitted(TaskId(task_id))
            self._tell(TaskId(task_id), event.model_copy(update={"batch_id": batch.id}))
        tasks = batch.tasks + len(chosen)
        self._append(BatchExtended(batch_id=batch.id, part="p", added=len(chosen), tasks=tasks, request_sha256="0"))

    def _append(self, event: BatchEvent) -> None:
        self._sequence += self._choose(range(1, 4))
        self.messages.append(message(event, self._sequence, about=event.batch_id))
        self._batches[event.batch_id] = fold_batch(history_of(self.messages, event.batch_id))


@st.composite
def stories(draw: Any) -> list[RawMessage]:
    """Draw the log of some batches and tasks; now and then without its beginning."""
    story = BatchStory(lambda choices: draw(st.sampled_from(choices)))
    for _ in range(draw(st.integers(10, 40))):
        story.batch_step() if draw(st.booleans()) else story.step()
    return story.messages[draw(st.integers(0, 1)) :]


def history_of(messages: list[RawMessage], batch_id: str) -> list[Recorded]:
    """Return a batch's own events."""
    recorded = [decode(one, "TASKS") for one in messages]
    return [one for one in recorded if isinstance(one.event, BatchEvent) and one.event.batch_id == batch_id]


@SLOW
@given(st.data())
def test_sql_agrees_with_the_fold(data: st.DataObject) -> None:
    story = data.draw(stories())
    with fresh_database() as database:
        for batch in data.draw(cut(story)):
            write(database, "TASKS", batch)
        rows = {row.batch_id: row for row in _rows(database)}
        over = {row[0]: row[1:] for row in database.rows(queries.text("batches_over"))}
        waiting = bool(database.rows(queries.text("batches_waiting")))
    tasks = folded(one for one in story if b'"task.' in one.payload).values()
    batches = {name: fold_batch(history_of(story, name)) for name in IDS}
    told = {name: batch for name, batch in batches.items() if batch is not None}
    assert rows.keys() == told.keys()
    for name, batch in told.items():
        members = [task for task in tasks if task.submitted.batch_id == name]
        assert _shown(rows[name]) == _expected(story, batch, members), name
        ended = Counter[str](task.state for task in members if task.ended)
        if batch.closed is not None and batch.completed is None and sum(ended.values()) == batch.tasks:
            last, number, counts = over.pop(name)
            assert (last, number, orjson.loads(counts)) == (batch.sequence, batch.tasks, ended)
    assert over == {}
    assert waiting == any(batch.closed is not None and batch.completed is None for batch in told.values())


@SLOW
@given(st.data())
def test_overlapping_replays_change_nothing(data: st.DataObject) -> None:
    story = data.draw(stories())
    replayed = [story[: index + 3] for index in range(0, len(story), 3)]
    assert table_of([*replayed, story, story]) == table_of([story])


def _rows(database: Database) -> list[BatchRow]:
    page = {"batch_id": None, "cursor": None, "limit": 10}
    return [read_row(values) for values in database.rows(queries.text("batches"), page)]


def _shown(row: BatchRow) -> dict[str, Any]:
    names = ("state", "name", "metadata", "tasks", "done", "counts", "opened_sequence", "last_sequence")
    times = ("opened_at", "closed_at", "completed_at")
    return {name: getattr(row, name) for name in (*names, *times)}


def _expected(story: list[RawMessage], batch: Batch, members: list[Task]) -> dict[str, Any]:
    history = history_of(story, batch.id)
    at = {one.type: one.time for one in history}
    return {
        "state": "completed" if batch.completed else "closed" if batch.closed else "open",
        "name": batch.opened.name,
        "metadata": batch.opened.metadata,
        "tasks": batch.tasks,
        "done": sum(task.ended for task in members),
        "counts": Counter(task.state for task in members),
        "opened_sequence": history[0].sequence,
        "last_sequence": batch.sequence,
        "opened_at": at["batch.opened"],
        "closed_at": at.get("batch.closed"),
        "completed_at": at.get("batch.completed"),
    }
