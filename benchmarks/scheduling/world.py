"""What is simulated: cards of mixed memory, models of Zipf popularity, and the tasks that arrive; all by one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from bitinglip.workers.simulation.world import Card, Task, World
from bitinglip.workers.view import GIB, ModelView

CARD_GIB = (8, 8, 8, 12, 16, 24, 24, 48)
LANES = {"interactive": 0.3, "normal": 0.5, "batch": 0.2}
"""Share of the tasks in each lane."""
KEYS = {"k0": 0.55, "k1": 0.2, "k2": 0.1, "k3": 0.1, "k4": 0.05}
"""Share of the tasks of each API key."""
BURST_S, CALM_S, BURST = 30.0, 90.0, 3.0
"""A bursty world has so many times the mean rate for 30 s, then what is left of it for 90 s."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One world."""

    name: str
    cards: int
    models: int
    load: float
    """Work that arrives, as a part of what all cards could do."""
    horizon_s: float
    zipf: float = 1.0
    bursty: bool = False
    mean_task_s: float = 4.0
    seed: int = 1


def make(scenario: Scenario) -> World:
    """Return the world of a scenario; the same for the same scenario."""
    rng = random.Random(scenario.seed)
    sizes = [CARD_GIB[n % len(CARD_GIB)] for n in range(scenario.cards)]
    cards = [Card(f"card-{n:04}", int(size * 0.9 * GIB)) for n, size in enumerate(sizes)]
    models: dict[str, ModelView] = {}
    task_s: dict[str, float] = {}
    for n in range(scenario.models):
        need = min(max(sizes) * 0.85, rng.choice((1.5, 3, 4, 6, 7, 10, 14, 20)))
        load_s = 5.0 * 36 ** rng.random()  # 5 s to 3 min, evenly by order of magnitude
        models[f"m{n:04}"] = ModelView(f"m{n:04}", int(need * GIB), load_s)
        task_s[f"m{n:04}"] = scenario.mean_task_s * 2 ** rng.uniform(-1.5, 1.0)
    weights = [1 / (n + 1) ** scenario.zipf for n in range(scenario.models)]
    return World(cards, models, task_s, tuple(KEYS), scenario.horizon_s, scenario.seed, weights)


def arrivals(scenario: Scenario, world: World) -> Iterator[Task]:
    """Yield the tasks in the order of their arrival."""
    rng = random.Random(scenario.seed + 1)
    names = list(world.models)
    mean_s = sum(world.task_s[name] * weight for name, weight in zip(names, world.weights, strict=True))
    rate = scenario.load * scenario.cards / (mean_s / sum(world.weights))
    most = rate * (BURST if scenario.bursty else 1.0)
    at = 0.0
    while (at := at + rng.expovariate(most)) < scenario.horizon_s:
        if scenario.bursty and rng.random() * most > rate * _burst(at):
            continue
        (reference,) = rng.choices(names, world.weights)
        (lane,) = rng.choices(list(LANES), list(LANES.values()))
        (key,) = rng.choices(list(KEYS), list(KEYS.values()))
        yield Task(at, lane, key, reference, world.task_s[reference] * rng.uniform(0.5, 1.5))


def _burst(at: float) -> float:
    period = BURST_S + CALM_S
    return BURST if at % period < BURST_S else (period - BURST * BURST_S) / CALM_S
