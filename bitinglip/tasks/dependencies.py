"""What becomes of a task by the ends of those that it depends on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson

from bitinglip.errors import InvalidInput
from bitinglip.events import artifacts, subjects
from bitinglip.events.log import EventLog
from bitinglip.events.registry import Event
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import DropTask, ReleaseTask
from bitinglip.tasks.state import is_terminal

LOOK_LEAST = timedelta(seconds=5)
LOOK_MOST = timedelta(minutes=10)
RESULT_MOST_BYTES = 4 * 2**20
"""Largest result that can become part of another task's parameters."""

_ENDS = {
    "task.failed": "failed",
    "task.cancelled": "was cancelled",
    "task.expired": "expired",
    "task.dead_lettered": "is a dead letter",
}


class Outcome(NamedTuple):
    """What the log has of a task: whether it is there, and its terminal event."""

    known: bool
    end: Event | None
    private: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will become of it."""
        return not self.known or self.end is not None


def verdict(task: TaskSubmitted, outcomes: Mapping[TaskId, Outcome]) -> ReleaseTask | DropTask | None:
    """Return what is to be done with a task that waits for these; none: it waits on. Pure."""
    if task.on_failure != "run":
        for task_id, outcome in outcomes.items():
            if outcome.over and not isinstance(outcome.end, TaskSucceeded):
                became = _ENDS[outcome.end.type] if outcome.end is not None else "is no longer in the log"
                return DropTask(reason=f"task {task_id}, which it depends on, {became}")
    return ReleaseTask() if all(outcome.over for outcome in outcomes.values()) else None


def look_again_at(since: datetime, now: datetime) -> datetime:
    """Return when a task that has waited since then is looked at again: after as long as that, in bounds. Pure."""
    return now + min(max(now - since, LOOK_LEAST), LOOK_MOST)


async def outcomes_of(log: EventLog, task_ids: Iterable[TaskId]) -> dict[TaskId, Outcome]:
    """Return what has become of tasks.

    Raises:
        NoServer: the log cannot be asked now.
    """
    asked = list(task_ids)
    return dict(zip(asked, await asyncio.gather(*[_outcome(log, task_id) for task_id in asked]), strict=True))


async def require(log: EventLog, task_ids: Iterable[TaskId]) -> frozenset[TaskId]:
    """See to it that tasks are in the log; returns those of them that are private.

    Raises:
        InvalidInput: one is not; the error names it.
        NoServer: the log cannot be asked now.
    """
    outcomes = await outcomes_of(log, task_ids)
    for task_id, outcome in outcomes.items():
        if not outcome.known:
            raise InvalidInput(field="depends_on", problem=f"there is no task {task_id}")
    return frozenset(task_id for task_id, outcome in outcomes.items() if outcome.private)


async def results_of(log: EventLog, outcomes: Mapping[TaskId, Outcome]) -> dict[TaskId, Any]:
    """Return the results of those that succeeded.

    Raises:
        InvalidInput: one is too large.
        ArtifactNotFound, ArtifactExpired, TaskIsForgotten: one is in an artifact that is there no more.
    """
    ends = {task_id: outcome.end for task_id, outcome in outcomes.items()}
    return {task_id: await _result(log, end) for task_id, end in ends.items() if isinstance(end, TaskSucceeded)}


async def _outcome(log: EventLog, task_id: TaskId) -> Outcome:
    latest = await log.read_latest(TASKS, subjects.task_events(task_id))
    if not any(recorded.type == "task.submitted" for recorded in latest):  # it has left the server, or never was
        latest = await log.read_task(task_id)
    end = next((recorded.event for recorded in latest if is_terminal(recorded.event)), None)
    private = any(isinstance(each.event, TaskSubmitted) and each.event.private for each in latest)
    return Outcome(bool(latest), end, private)


async def _result(log: EventLog, end: TaskSucceeded) -> Any:
    if end.result_ref is None:
        return end.result
    if end.result_ref.size_bytes > RESULT_MOST_BYTES:
        raise InvalidInput(field="params", problem=f"the result of task {end.task_id} is larger than 4 MiB")
    body, _ = await artifacts.get(log.connection, end.result_ref.sha256)
    return orjson.loads(body)
