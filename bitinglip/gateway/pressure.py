"""Back-pressure: no queue and no key's work grows without bound, and what is over it is told when to come again.

The check costs a request a look-up: how deep the queues are is asked of the server in the background, at most once a
second and only while tasks come in; what this gateway has accepted since is added to it. A queue that no worker has
served yet has no depth to ask for: there, each gateway counts what it has accepted itself.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from bitinglip.errors import KeyFull, NoServer, QueueFull
from bitinglip.events.ending import end
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.events.subjects import decode_queue
from bitinglip.events.task import TaskSubmitted
from bitinglip.tasks.routing import route_of

log = logging.getLogger(__name__)

FRESH_S = 1.0
"""How long the depths are good for."""
SHARE_MOST = 0.05
"""Part of the time that is spent on asking for them: many queues are looked at less often."""
RETRY_DEFAULT_S = 10
"""How long a caller is sent away for when nothing has ended of late."""
RETRY_MOST_S = 300
"""Longest time that a caller is sent away for."""
LONGEST_SHOWN = 3
"""Queues of a key that a refusal names."""


@dataclass(slots=True)
class Depth:
    """How much waits or runs in one queue, or of one key."""

    told: int = 0
    """Tasks when the server was last asked."""
    since: int = 0
    """Tasks that this gateway has accepted since."""
    drained_per_s: float = 0.0
    told_at: float = 0.0

    @property
    def waiting(self) -> int:
        """Tasks that wait or run, as far as it is known."""
        return self.told + self.since

    def update(self, told: int, now: float) -> None:
        """Take in a fresh answer; what was accepted while it was on its way may be missing until the next one."""
        elapsed_s = now - self.told_at
        if self.told_at and elapsed_s > 0:
            self.drained_per_s = max(0.0, self.waiting - told) / elapsed_s
        self.told, self.since, self.told_at = told, 0, now

    def retry_after_s(self, over: int) -> int:
        """Return in how many seconds so many will have ended, as far as the recent rate tells."""
        seconds = math.ceil(over / self.drained_per_s) if self.drained_per_s else RETRY_DEFAULT_S
        return min(max(1, seconds), RETRY_MOST_S)


class Depths:
    """What waits, by queue and by key (`""`: of callers without one), against what may; 0 is no bound."""

    def __init__(self, queue_most: int, key_most: int) -> None:
        self._queue_most = queue_most
        self._key_most = key_most
        self.queues: defaultdict[Route, Depth] = defaultdict(Depth)
        self.keys: defaultdict[str, Depth] = defaultdict(Depth)

    def add(self, tasks: Mapping[Route, int]) -> None:
        """Count these in, all of them or, if there is no room for one, none.

        Raises:
            QueueFull, KeyFull: there are too many with them.
        """
        keys = _by_key(tasks.items())
        for route, count in tasks.items() if self._queue_most else ():
            self._check_queue(route, count)
        for key, count in keys.items() if self._key_most else ():
            self._check_key(key, count)
        for route, count in tasks.items():
            self.queues[route].since += count
        for key, count in keys.items():
            self.keys[key].since += count

    def take_back(self, tasks: Mapping[Route, int]) -> None:
        """Count out again what was counted in, and did not come."""
        counted = [(self.queues[route], count) for route, count in tasks.items()]
        counted += [(self.keys[key], count) for key, count in _by_key(tasks.items()).items()]
        for depth, count in counted:
            depth.since = max(0, depth.since - count)

    def update(self, told: Mapping[Route, int], now: float) -> None:
        """Take in what the server tells; of a queue that it does not know, what was counted stands."""
        for route, waiting in told.items():
            self.queues[route].update(waiting, now)
        sums = _by_key((route, depth.waiting) for route, depth in self.queues.items())
        for key in {*sums, *self.keys}:
            self.keys[key].update(sums[key], now)

    def _check_queue(self, route: Route, count: int) -> None:
        depth, most = self.queues[route], self._queue_most
        if depth.waiting + count > most:
            raise QueueFull(
                lane=route.lane,
                model=decode_queue(route.queue)[0],
                limit=most,
                waiting=depth.waiting,
                asked=count,
                retry_after_s=depth.retry_after_s(depth.waiting + count - most),
            )

    def _check_key(self, key: str, count: int) -> None:
        depth, most = self.keys[key], self._key_most
        if depth.waiting + count > most:
            raise KeyFull(
                key=key or None,
                limit=most,
                waiting=depth.waiting,
                asked=count,
                longest=self._longest(key),
                retry_after_s=depth.retry_after_s(depth.waiting + count - most),
            )

    def _longest(self, key: str) -> list[dict[str, str | int]]:
        own = [(route, depth) for route, depth in self.queues.items() if _key_of(route) == key and depth.waiting]
        own.sort(key=lambda each: each[1].waiting, reverse=True)
        return [
            {"lane": route.lane, "model": decode_queue(route.queue)[0], "waiting": depth.waiting}
            for route, depth in own[:LONGEST_SHOWN]
        ]


class Pressure:
    """The bounds of this gateway."""

    def __init__(self, event_log: EventLog, queue_most: int, key_most: int) -> None:
        self._log = event_log
        self._bounded = bool(queue_most or key_most)
        self._depths = Depths(queue_most, key_most)
        self._looking: asyncio.Task[None] | None = None
        self._fresh_until = 0.0

    async def admit(self, tasks: Seq[TaskSubmitted]) -> None:
        """Let these tasks in, all or none; none is refused for what waited more than a moment ago.

        Raises:
            QueueFull: as many tasks wait in the queue of one of them as may.
            KeyFull: as many tasks of its key wait as may.
        """
        if not self._bounded:
            return
        counts, look = _by_route(tasks), self._look()
        try:
            self._depths.add(counts)
        except (QueueFull, KeyFull):
            if look is None:
                raise
            await asyncio.wait((look,))
            self._depths.add(counts)

    def take_back(self, tasks: Seq[TaskSubmitted]) -> None:
        """Count out again tasks that were let in, and were in the log already."""
        if self._bounded:
            self._depths.take_back(_by_route(tasks))

    async def close(self) -> None:
        """Ask nothing more."""
        await end(lambda: [self._looking])

    def _look(self) -> asyncio.Task[None] | None:
        """Return the look at the queues that is due, if one is."""
        if self._looking is None and time.monotonic() >= self._fresh_until:
            self._looking = asyncio.create_task(self._ask(), name="queue depths")
        return self._looking

    async def _ask(self) -> None:
        started = time.monotonic()
        try:
            states = await self._log.queue_states()
            self._depths.update({state.route: state.waiting + state.running for state in states}, time.monotonic())
        except NoServer as error:
            log.debug("the depths of the queues are not known: %s", error)
        finally:
            now = time.monotonic()
            self._fresh_until = now + max(FRESH_S, (now - started) / SHARE_MOST)
            self._looking = None


def _by_route(tasks: Iterable[TaskSubmitted]) -> Counter[Route]:
    return Counter(Route(*route_of(task)) for task in tasks)


def _by_key(counts: Iterable[tuple[Route, int]]) -> Counter[str]:
    keys: Counter[str] = Counter()
    for route, count in counts:
        keys[_key_of(route)] += count
    return keys


def _key_of(route: Route) -> str:
    return decode_queue(route.queue)[1].share
