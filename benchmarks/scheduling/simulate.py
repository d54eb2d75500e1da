"""The discrete-event loop, and what is counted."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from benchmarks.scheduling.schedulers import Scheduler, Step
from benchmarks.scheduling.world import KEYS, LANES, Card, Task, World, arrivals
from benchmarks.support import quantile


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
    """Tasks that had not started when the last one came."""

    def json(self) -> dict[str, object]:
        """Return it as JSON values."""
        return asdict(self)


class Simulation:
    """One run of a world under one scheduler."""

    def __init__(self, name: str, world: World, scheduler: Scheduler) -> None:
        self._name = name
        self._world = world
        self._scheduler = scheduler
        self._events: list[tuple[float, int, str, Card | Task | None]] = []
        self._numbers = itertools.count()
        self._tasks: list[Task] = []

    def run(self) -> Outcome:
        """Let all tasks come, until the horizon; what runs then ends, what waits then counts as waiting until then."""
        horizon_s = self._world.scenario.horizon_s
        coming = arrivals(self._world)
        self._next_arrival(coming)
        if self._scheduler.look_s is not None:
            self._push(self._scheduler.look_s, "look", None)
        while self._events and self._events[0][0] <= horizon_s:
            now, _, kind, what = heapq.heappop(self._events)
            if isinstance(what, Task):
                self._next_arrival(coming)
                self._tasks.append(what)
                self._wake(self._scheduler.arrived(what, now), now)
            elif isinstance(what, Card):
                self._loaded(what, now) if kind == "loaded" else self._freed(what, now)
            else:
                for card in self._scheduler.look(now):
                    self._wake(card, now)
                self._push(now + (self._scheduler.look_s or 0), "look", None)
        return self._outcome()

    def _push(self, at: float, kind: str, what: Card | Task | None) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), kind, what))

    def _next_arrival(self, coming: Iterator[Task]) -> None:
        task = next(coming, None)
        if task is not None:
            self._push(task.at, "arrived", task)

    def _wake(self, card: Card | None, now: float) -> None:
        if card is None or card.busy:
            return
        step = self._scheduler.next(card, now)
        if step is not None:
            self._take(card, step, now)

    def _take(self, card: Card, step: Step, now: float) -> None:
        card.busy = True
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
            card.busy_s += max(0.0, min(at, self._world.scenario.horizon_s) - step.task.started)
        self._push(at, "freed", card)

    def _loaded(self, card: Card, now: float) -> None:
        card.loading = None

    def _freed(self, card: Card, now: float) -> None:
        card.busy, card.worked_at = False, now
        self._wake(card, now)

    def _outcome(self) -> Outcome:
        horizon_s = self._world.scenario.horizon_s
        waits: dict[str, list[float]] = {lane: [] for lane in LANES}
        slow: dict[str, list[float]] = {key: [] for key in KEYS}
        for task in self._tasks:
            wait = min(task.started, horizon_s) - task.at if task.started == task.started else horizon_s - task.at
            waits[task.lane].append(wait)
            slow[task.key].append((wait + task.run_s) / task.run_s)
        means = [sum(each) / len(each) for each in slow.values() if each]
        return Outcome(
            self._name,
            len(self._tasks),
            {lane: (round(quantile(each, 0.5), 2), round(quantile(each, 0.99), 2)) for lane, each in waits.items()},
            round(sum(card.loads for card in self._world.cards) / max(1, len(self._tasks)) * 1000, 1),
            round(sum(card.busy_s for card in self._world.cards) / len(self._world.cards) / horizon_s, 3),
            round(sum(means) ** 2 / (len(means) * sum(mean**2 for mean in means)), 3),
            sum(task.started != task.started for task in self._tasks),
        )
