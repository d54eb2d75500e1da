"""Back-pressure: no queue grows without bound, and what a full one answers says when to come again.

The check costs a request a look-up: a queue's depth is asked of the server in the background, at most once a second
and only while tasks come in for it; what this gateway has accepted since is added to it. A queue that no worker has
served yet has no depth to ask for: there, each gateway counts what it has accepted itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass

from bitinglip.errors import NoServer, QueueFull
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.events.task import TaskSubmitted
from bitinglip.tasks.routing import route_of

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""How long a depth is good for."""
RETRY_MOST_S = 300
"""Longest time that a caller is sent away for."""


@dataclass(slots=True)
class Depth:
    """What is known of one queue."""

    waiting: int = 0
    """Tasks that waited or ran when the server was last asked."""
    since: int = 0
    """Tasks that this gateway has accepted since."""
    drained_per_s: float = 0.0
    asked_at: float = 0.0
    asking: asyncio.Task[None] | None = None

    def update(self, waiting: int, now: float) -> None:
        """Take in a fresh answer; what was accepted while it was on its way may be missing until the next one."""
        elapsed_s = now - self.asked_at
        if self.asked_at and elapsed_s > 0:
            self.drained_per_s = max(0.0, self.waiting + self.since - waiting) / elapsed_s
        self.waiting, self.since, self.asked_at = waiting, 0, now

    def retry_after_s(self, most: int) -> int:
        """Return in how many seconds there will be room, as far as the recent rate tells."""
        over = self.waiting + self.since - most + 1
        seconds = math.ceil(over / self.drained_per_s) if self.drained_per_s else 10
        return min(max(1, seconds), RETRY_MOST_S)


class Pressure:
    """The bound on every queue of this gateway."""

    def __init__(self, event_log: EventLog, queue_most: int) -> None:
        self._log = event_log
        self._most = queue_most
        self._depths: dict[Route, Depth] = {}

    def admit(self, task: TaskSubmitted) -> None:
        """Let one more task in, or refuse it.

        Raises:
            QueueFull: as many tasks wait in its queue as may.
        """
        if not self._most:
            return
        route = Route(*route_of(task))
        depth = self._depths.get(route)
        if depth is None:
            depth = self._depths[route] = Depth()
        if depth.asking is None and time.monotonic() - depth.asked_at > FRESH_S:
            depth.asking = asyncio.create_task(self._ask(route, depth), name="queue depth")
        if depth.waiting + depth.since >= self._most:
            after_s = depth.retry_after_s(self._most)
            raise QueueFull(lane=task.lane, model=task.model, limit=self._most, retry_after_s=after_s)
        depth.since += 1

    async def close(self) -> None:
        """Ask nothing more."""
        asking = [depth.asking for depth in self._depths.values() if depth.asking is not None]
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, route: Route, depth: Depth) -> None:
        try:
            waiting = await self._log.queue_depth(route)
            if waiting is not None:
                depth.update(waiting, time.monotonic())
        except NoServer as error:
            log.debug("the depth of %s is not known: %s", route.consumer, error)
        finally:
            depth.asking = None
