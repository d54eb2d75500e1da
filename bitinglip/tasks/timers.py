"""Delayed attempts as scheduled messages: the server keeps the time, and the log keeps what came of it."""

from __future__ import annotations

from contextlib import suppress

from bitinglip.errors import Conflict
from bitinglip.events.log import Append, EventLog
from bitinglip.events.task import TaskQueued
from bitinglip.tasks.outgrown import ensure_queue
from bitinglip.tasks.routing import route_now
from bitinglip.tasks.state import AwaitTimer, Task


def timer_append(log: EventLog, task: Task, wait: AwaitTimer) -> Append:
    """Prepare the timer of a task's coming attempt; at its time the server stores the task's `queued`."""
    reason = "bigger_card" if task.bigger_next else "retry" if task.attempt else "scheduled"
    event = TaskQueued(task_id=task.id, attempt=wait.attempt, reason=reason)
    return log.timer_append(event, wait.attempt, wait.at, route_now(task))


def start_timer(task: Task) -> AwaitTimer | None:
    """Return what a task waits for that was asked to start later, and has not yet; none for any other task."""
    run_at = task.submitted.run_at
    return AwaitTimer(1, run_at) if task.state == "scheduled" and task.attempt == 0 and run_at is not None else None


async def ensure_timer(log: EventLog, task: Task, wait: AwaitTimer) -> None:
    """Set the timer of a task's coming attempt, unless it is set; the queue that it leads to is there by then.

    Raises:
        NoServer: the server did not answer.
    """
    await ensure_queue(log, task)
    with suppress(Conflict):
        await log.append(timer_append(log, task, wait))
