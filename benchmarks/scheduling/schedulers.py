"""A way of scheduling that only a benchmark can have: models assigned to cards, by work that is known beforehand."""

from __future__ import annotations

from collections import deque

from bitinglip.workers.simulation.schedulers import Step, Watched, with_load
from bitinglip.workers.simulation.world import Card, Task, World


class Static(Watched):
    """Each model has its cards for good, as many as its expected work asks for; FIFO within a card's models."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._homes: dict[str, list[Card]] = {}
        self._serves: dict[str, set[str]] = {card.name: set() for card in world.cards}
        self._waiting: dict[str, deque[Task]] = {name: deque() for name in world.models}
        self._assign()

    def arrived(self, task: Task, now: float) -> Card | None:
        """Queue a task."""
        self._waiting[task.reference].append(task)
        return next((card for card in self._homes[task.reference] if not card.busy), None)

    def next(self, card: Card, now: float) -> Step | None:
        """Find work for a card."""
        heads = [self._waiting[name] for name in self._serves[card.name] if self._waiting[name]]
        if not heads:
            return None
        return with_load(self._world, card, min(heads, key=lambda queue: queue[0].at).popleft())

    def _assign(self) -> None:
        """Deal cards out by expected work: the most popular models get several, the rare ones share one."""
        world = self._world
        work = {name: world.task_s[name] * weight for name, weight in zip(world.models, world.weights, strict=True)}
        whole = sum(work.values())
        loads = {card.name: 0.0 for card in world.cards}
        for name in sorted(work, key=lambda name: -work[name]):
            part = work[name] / whole * len(world.cards)
            able = [card for card in world.cards if world.models[name].need_bytes <= card.budget]
            chosen = sorted(able, key=lambda card: (loads[card.name], card.budget))[: max(1, round(part))]
            self._homes[name] = chosen
            for card in chosen:
                loads[card.name] += part / len(chosen)
                self._serves[card.name].add(name)
