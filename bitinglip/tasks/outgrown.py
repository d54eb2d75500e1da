"""The queue of a task that has outgrown a device: nobody asked for one of that size, so whoever fills it opens it."""

from __future__ import annotations

from bitinglip.events.log import EventLog
from bitinglip.events.routes import open_route
from bitinglip.events.streams import Route
from bitinglip.tasks.routing import route_now
from bitinglip.tasks.state import Task

LEASE_S = 10.0
"""Lease of a queue that no worker has found yet: each that serves it declares its own."""


async def ensure_queue(log: EventLog, task: Task) -> None:
    """See to it that the queue is there, and that the workers hear of it, if the task has outgrown a device.

    It comes before the message that is to lie there: whatever dies in between, no work waits where nobody looks.

    Raises:
        NoServer: the server does not answer.
    """
    if task.outgrown:
        await open_route(log.connection, Route(*route_now(task)), LEASE_S)
