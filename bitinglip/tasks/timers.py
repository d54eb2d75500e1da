"""Delayed attempts as scheduled messages: the server keeps the time, and the log keeps what came of it."""

from __future__ import annotations

from contextlib import suppress

from bitinglip.errors import Conflict
from bitinglip.events.appending import Append
from bitinglip.events.log import EventLog
from bitinglip.tasks.outgrown import ensure_queue
from bitinglip.tasks.routing import route_now
from bitinglip.tasks.state import AwaitTimer, Task, queued_in_time


def timer_append(log: EventLog, task: Task, wait: AwaitTimer) -> Append:
    """Prepare the timer of a task's coming attempt; at its time the server stores the task's `queued`."""
    return log.timer_append(queued_in_time(task, wait), wait.attempt, wait.at, route_now(task))


async def ensure_timer(log: EventLog, task: Task, wait: AwaitTimer) -> None:
    """Set the timer of a task's coming attempt, unless it is set; the queue that it leads to is there by then.

    Raises:
        NoServer: the server did not answer.
    """
    await ensure_queue(log, task)
    with suppress(Conflict):
        await log.append(timer_append(log, task, wait))
