"""The ways of scheduling that are compared: ours, and one queue for all (Celery's way)."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from bitinglip.workers.loading import Plan, plan
from bitinglip.workers.policy import Load, Pull, after_service, decide
from bitinglip.workers.simulation.world import LANES, Card, Task, World
from bitinglip.workers.view import CardView, ClusterView, Held, RouteView, WorkerView

LOOK_S = 1.0
"""How often the facts about the cluster are taken: between two looks everybody acts on the last one."""
RATE_S = 30.0
"""Time over which the rate of arrivals is averaged."""
MOST_LOADED = 2


@dataclass(frozen=True, slots=True)
class Step:
    """What a card does next: drop models, load one, run a task; any of them may be none."""

    evicts: tuple[str, ...] = ()
    load: str | None = None
    task: Task | None = None


class Scheduler(Protocol):
    """Decides for every card."""

    look_s: float | None
    """Seconds between two calls of `look`; none: it is not called."""

    def arrived(self, task: Task, now: float) -> Card | None:
        """Take a task in; returns the idle card that hears of it."""
        ...

    def next(self, card: Card, now: float) -> Step | None:
        """Return what an idle card is to do; none: it waits."""
        ...

    def look(self, now: float) -> list[Card]:
        """Take the facts anew; returns the cards that must decide anew."""
        ...


def room_for(world: World, card: Card, reference: str) -> tuple[str, ...] | None:
    """Return what a card drops for a model, the least recently used ones first; none if it is too big for the card."""
    need, dropped, held = world.models[reference].need_bytes, list[str](), list(card.held)
    while len(held) >= MOST_LOADED or sum(world.models[name].need_bytes for name in held) + need > card.budget:
        if not held:
            return None
        dropped.append(held.pop(0))
    return tuple(dropped)


def with_load(world: World, card: Card, task: Task) -> Step:
    """Return the step that runs a task, with the load that it needs."""
    if task.reference in card.held:
        return Step(task=task)
    return Step(room_for(world, card, task.reference) or (), task.reference, task)


class Watched:
    """Looks at nothing but its queues."""

    look_s: float | None = None

    def look(self, now: float) -> list[Card]:
        """Return nobody."""
        return []


class Fifo(Watched):
    """One queue; whoever is free takes the first task that fits on its card, and loads what that needs."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: dict[int, deque[Task]] = {model.need_bytes: deque() for model in world.models.values()}
        self._idle = {card.name: card for card in world.cards}
        self._rng = random.Random(world.seed + 2)  # noqa: S311

    def arrived(self, task: Task, now: float) -> Card | None:
        """Queue a task."""
        need = self._world.models[task.reference].need_bytes
        self._waiting[need].append(task)
        able = [card for card in self._idle.values() if need <= card.budget]
        return self._rng.choice(able) if able else None

    def next(self, card: Card, now: float) -> Step | None:
        """Find work for a card."""
        heads = [queue for need, queue in self._waiting.items() if queue and need <= card.budget]
        if not heads:
            self._idle[card.name] = card
            return None
        self._idle.pop(card.name, None)
        return with_load(self._world, card, min(heads, key=lambda queue: queue[0].at).popleft())


@dataclass(slots=True)
class Ours:
    """The policy of the workers: every card calls `decide`, with facts that are up to a second old.

    As workers do, it goes by what waits; with `rated` it knows as well how fast work comes in, which workers do not.
    """

    world: World
    rated: bool = False
    look_s: float | None = LOOK_S
    decisions: int = 0
    decision_s: float = 0.0
    longest_s: float = 0.0
    plans: int = 0
    plan_s: float = 0.0
    longest_plan_s: float = 0.0
    _plan: Plan = field(default_factory=Plan)
    _waiting: dict[str, dict[tuple[str, str], deque[Task]]] = field(
        default_factory=dict[str, dict[tuple[str, str], deque[Task]]]
    )
    _views: dict[str, WorkerView] = field(default_factory=dict[str, WorkerView])
    _routes: dict[str, tuple[RouteView, ...]] = field(default_factory=dict[str, tuple[RouteView, ...]])
    _came: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict[str, dict[tuple[str, str], int]])
    _standing: dict[str, dict[str, Card]] = field(default_factory=dict[str, dict[str, Card]])
    _stands_on: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def __post_init__(self) -> None:
        """Begin with empty queues."""
        for name in self.world.models:
            self._routes[name] = tuple(RouteView(lane, name, key, depth=0) for lane in LANES for key in self.world.keys)
            self._waiting[name] = {(lane, key): deque() for lane in LANES for key in self.world.keys}
        for card in self.world.cards:
            self._views[card.name] = WorkerView(self._routes, CardView(card.name), models=self.world.models)
        self.look(0.0)

    def arrived(self, task: Task, now: float) -> Card | None:
        """Queue a task."""
        self._waiting[task.reference][(task.lane, task.key)].append(task)
        came = self._came.setdefault(task.reference, {})
        came[(task.lane, task.key)] = came.get((task.lane, task.key), 0) + 1
        standing = self._standing.get(task.reference)
        return next(iter(standing.values())) if standing else None

    def next(self, card: Card, now: float) -> Step | None:
        """Find work for a card."""
        self._stop_standing(card)
        idle = False
        for _ in range(3):  # pull, find nothing, then load or wait
            view = self._view(card, now, idle)
            started = time.perf_counter()
            step = decide(view)
            self._measure(time.perf_counter() - started)
            if isinstance(step, Load):
                self._forget_order(card)
                task = self._first(card, step.routes)
                if task is not None:
                    return Step(step.evicts, step.reference, task)
                continue
            task = self._first(card, step.routes, step.empty if isinstance(step, Pull) else ())
            if task is not None:
                return with_load(self.world, card, task)
            if not isinstance(step, Pull):
                self._stand(card, [route.reference for route in step.routes])
                return None
            idle = True
        return None

    def look(self, now: float) -> list[Card]:
        """Make the plan anew: once for all cards, for each would make the same one."""
        self._routes.update(list(self._depths(now)))
        cards = tuple(self._card(card, now) for card in self.world.cards)
        started = time.perf_counter()
        self._plan = plan(ClusterView(self._routes, self.world.models, cards))
        taken = time.perf_counter() - started
        self.plans, self.plan_s = self.plans + 1, self.plan_s + taken
        self.longest_plan_s = max(self.longest_plan_s, taken)
        wanted = self._plan.loads.keys() | self._plan.waits.keys()
        return [card for card in self.world.cards if not card.busy and card.name in wanted]

    # --- facts --------------------------------------------------------------------------------------------------------

    def _depths(self, now: float) -> Iterator[tuple[str, tuple[RouteView, ...]]]:
        came, self._came = self._came, {}
        for name, routes in self._routes.items():
            if name in came or any(route.depth or route.rate > 0.001 for route in routes):
                yield name, tuple(self._fact(route, came.get(name, {}), now) for route in routes)

    def _fact(self, route: RouteView, came: dict[tuple[str, str], int], now: float) -> RouteView:
        queue = self._waiting[route.reference][(route.lane, route.share)]
        rate = came.get((route.lane, route.share), 0) / LOOK_S if self.rated else 0.0
        if not (queue or rate or route.depth or route.rate > 0.001):
            return route
        return RouteView(
            route.lane,
            route.reference,
            route.share,
            depth=len(queue),
            oldest_s=now - queue[0].at if queue else 0.0,
            task_s=self.world.task_s[route.reference],
            rate=route.rate + (rate - route.rate) * LOOK_S / RATE_S,
        )

    def _card(self, card: Card, now: float) -> CardView:
        held = tuple(Held(name, self.world.models[name].need_bytes, now - since) for name, since in card.held.items())
        return CardView(
            card.name,
            total_bytes=card.budget,
            budget_bytes=card.budget,
            most_loaded=MOST_LOADED,
            loaded=held,
            loading=card.loading,
            idle=not card.busy,
            idle_s=0.0 if card.busy else now - card.worked_at,
        )

    def _view(self, card: Card, now: float, idle: bool) -> WorkerView:
        view = replace(
            self._views[card.name],
            card=self._card(card, now),
            loaded=frozenset(card.held),
            idle=idle,
            plan=self._plan,
        )
        self._views[card.name] = view
        return view

    # --- acts ---------------------------------------------------------------------------------------------------------

    def _first(self, card: Card, routes: tuple[RouteView, ...], empty: tuple[RouteView, ...] = ()) -> Task | None:
        found_empty = list(empty)
        for route in routes:
            queue = self._waiting[route.reference][(route.lane, route.share)]
            if queue:
                self._views[card.name] = after_service(self._views[card.name], route, 1, found_empty)
                return queue.popleft()
            found_empty.append(route)
        return None

    def _forget_order(self, card: Card) -> None:
        loads = {name: order for name, order in self._plan.loads.items() if name != card.name}
        self._plan = replace(self._plan, loads=loads)

    def _stand(self, card: Card, references: list[str]) -> None:
        self._stands_on[card.name] = list(dict.fromkeys(references))
        for reference in self._stands_on[card.name]:
            self._standing.setdefault(reference, {})[card.name] = card

    def _stop_standing(self, card: Card) -> None:
        for reference in self._stands_on.pop(card.name, ()):
            self._standing[reference].pop(card.name, None)

    def _measure(self, taken: float) -> None:
        self.decisions, self.decision_s = self.decisions + 1, self.decision_s + taken
        self.longest_s = max(self.longest_s, taken)
