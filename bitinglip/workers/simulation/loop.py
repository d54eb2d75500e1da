"""The discrete-event loop, and what is counted."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from bitinglip.workers.simulation.schedulers import Scheduler, Step
from bitinglip.workers.simulation.world import LANES, Card, Task, World

LEAST_S = 1e-3
"""What runs shorter is taken to run so long."""
STUCK_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one run."""

    scheduler: str
    tasks: int
    waits_s: dict[str, tuple[float, float]]
    """Lane -> median and 99th percentile of the wait before a start."""
    loads_per_1000: float
    utilisation: float
    """Part of the cards' time that went into tasks."""
    fairness: float
    """Jain's index over the keys, of the mean slowdown of each."""
    unserved: int
    """Tasks that had not started at the horizon."""
    loads: int
    makespan_s: float
    """Seconds from the first task's coming to the last one's end, or the horizon."""

    def json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


class Simulation:
    """One run of a world under one scheduler."""

    def __init__(self, name: str, world: World, scheduler: Scheduler, coming: Iterable[Task]) -> None:
        """`coming`: the tasks in the order of their coming."""
        self._coming = iter(coming)
        self._name = name
        self._world = world
        self._scheduler = scheduler
        self._events: list[tuple[float, int, str, Card | Task | None]] = []
        self._numbers = itertools.count()
        self._tasks: list[Task] = []
        self._running: dict[str, Task] = {}
        self._ended = 0
        self._all_came = False
        self._now = self._moved = 0.0

    def run(self) -> Outcome:
        """Let all tasks come, until the horizon; what runs then ends, what waits then counts as waiting until then."""
        horizon_s = self._world.horizon_s
        self._next_arrival(self._coming)
        for card in self._world.cards if self._to_the_end else ():
            self._wake(card, 0.0)  # so that it stands on its queues
        if self._scheduler.look_s is not None:
            self._push(self._scheduler.look_s, "look", None)
        while self._events and self._events[0][0] <= horizon_s and not self._over:
            now, _, kind, what = heapq.heappop(self._events)
            self._now = now
            if isinstance(what, Task):
                self._next_arrival(self._coming)
                self._tasks.append(what)
                self._wake(self._scheduler.arrived(what, now), now)
            elif isinstance(what, Card):
                self._loaded(what, now) if kind == "loaded" else self._freed(what, now)
            else:
                self._look(now)
        return self._outcome()

    @property
    def _to_the_end(self) -> bool:
        """Whether it goes on until the last task has ended."""
        return math.isinf(self._world.horizon_s)

    @property
    def _over(self) -> bool:
        """Whether every task that comes has ended; or, without a horizon, none has begun for so long that none will."""
        stuck = self._to_the_end and not self._running and self._now - self._moved > STUCK_S
        return self._all_came and (self._ended == len(self._tasks) or stuck)

    def _look(self, now: float) -> None:
        for card in self._scheduler.look(now):
            self._wake(card, now)
        again = now + (self._scheduler.look_s or 0)
        if self._to_the_end and self._ended == len(self._tasks) and self._events:
            again = max(again, self._events[0][0])  # a night without work is passed over
        self._push(again, "look", None)

    def _push(self, at: float, kind: str, what: Card | Task | None) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), kind, what))

    def _next_arrival(self, coming: Iterator[Task]) -> None:
        task = next(coming, None)
        if task is not None:
            self._push(task.at, "arrived", task)
        else:
            self._all_came = True

    def _wake(self, card: Card | None, now: float) -> None:
        if card is None or card.busy:
            return
        step = self._scheduler.next(card, now)
        if step is not None:
            self._take(card, step, now)

    def _take(self, card: Card, step: Step, now: float) -> None:
        card.busy, self._moved = True, now
        at = now
        if step.load is not None and step.load not in card.held:
            for name in step.evicts:
                card.held.pop(name, None)
            card.loading, card.loads = step.load, card.loads + 1
            at += self._world.models[step.load].load_s
            self._push(at, "loaded", card)
        if step.task is not None:
            card.held[step.task.reference] = card.held.pop(step.task.reference, at)  # now the most recently used one
            step.task.started = at
            at += step.task.run_s
            card.busy_s += max(0.0, min(at, self._world.horizon_s) - step.task.started)
            self._running[card.name] = step.task
        self._push(at, "freed", card)

    def _loaded(self, card: Card, now: float) -> None:
        card.loading = None

    def _freed(self, card: Card, now: float) -> None:
        card.busy, card.worked_at = False, now
        self._ended += self._running.pop(card.name, None) is not None
        self._wake(card, now)

    def _outcome(self) -> Outcome:
        ends_at = self._now if self._to_the_end else self._world.horizon_s
        waits: dict[str, list[float]] = {}
        slow: dict[str, list[float]] = {}
        for task in self._tasks:
            wait = (min(task.started, ends_at) if task.started == task.started else ends_at) - task.at
            waits.setdefault(task.lane, []).append(wait)
            run_s = max(task.run_s, LEAST_S)
            slow.setdefault(task.key, []).append((wait + run_s) / run_s)
        means = [sum(each) / len(each) for each in slow.values()]
        loads = sum(card.loads for card in self._world.cards)
        begun = self._tasks[0].at if self._tasks and self._to_the_end else 0.0
        busy_s = sum(card.busy_s for card in self._world.cards)
        return Outcome(
            self._name,
            len(self._tasks),
            {lane: _p50_p99(waits[lane]) for lane in LANES if lane in waits},
            round(loads / max(1, len(self._tasks)) * 1000, 1),
            round(busy_s / len(self._world.cards) / max(ends_at - begun, LEAST_S), 3),
            round(sum(means) ** 2 / (len(means) * sum(mean**2 for mean in means)), 3) if means else 1.0,
            sum(task.started != task.started for task in self._tasks),
            loads,
            round(ends_at - begun, 2),
        )


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def _p50_p99(waits_s: Sequence[float]) -> tuple[float, float]:
    return round(quantile(waits_s, 0.5), 2), round(quantile(waits_s, 0.99), 2)
