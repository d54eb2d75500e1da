"""What would have been: recorded arrivals in a world of other cards, or under another policy. Pure."""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bitinglip.workers.simulation.loop import Simulation
from bitinglip.workers.simulation.schedulers import Fifo, Ours, Scheduler
from bitinglip.workers.simulation.world import Card, Task, World
from bitinglip.workers.view import ModelView

POLICIES: dict[str, Callable[[World], Scheduler]] = {"ours": Ours, "fifo": Fifo}
USABLE = 0.9
"""Part of a card's memory that models may take."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Arrival(_Value):
    """A task that came."""

    at_s: float = Field(ge=0)
    lane: str = Field(pattern="^(interactive|normal|batch)$")
    key: str = ""
    model: str
    run_s: float = Field(ge=0)


class Model(_Value):
    """What a model takes."""

    need_bytes: int = Field(default=0, ge=0)
    load_s: float = Field(default=0.0, ge=0)


class Question(_Value):
    """What is to be simulated: what comes, on which cards (bytes of each), under which policies."""

    arrivals: list[Arrival]
    models: dict[str, Model]
    cards: list[int] = Field(min_length=1, max_length=100_000)
    policies: list[str] = Field(default_factory=lambda: ["ours"])


def answer(question: Question) -> dict[str, Any]:
    """Return the figures of each policy, and how many tasks fit on no card (they are left out).

    Raises:
        KeyError: there is no such policy.
    """
    budgets = [int(size * USABLE) for size in question.cards]
    fitting = [each for each in question.arrivals if _need(question, each.model) <= max(budgets)]
    told = {name: _simulated(question, fitting, budgets, name) for name in question.policies}
    return {"results": told, "fits_nowhere": len(question.arrivals) - len(fitting)}


def _simulated(question: Question, fitting: list[Arrival], budgets: list[int], name: str) -> dict[str, Any]:
    world = _world(question, fitting, budgets)
    coming = [Task(each.at_s, each.lane, each.key, each.model, each.run_s) for each in fitting]
    return Simulation(name, world, POLICIES[name](world), sorted(coming, key=lambda task: task.at)).run().json()


def _world(question: Question, fitting: list[Arrival], budgets: list[int]) -> World:
    runs: dict[str, list[float]] = {}
    for each in fitting:
        runs.setdefault(each.model, []).append(each.run_s)
    known = {name: question.models.get(name, Model()) for name in runs}
    return World(
        cards=[Card(f"card-{number:04}", budget) for number, budget in enumerate(budgets)],
        models={name: ModelView(name, model.need_bytes, model.load_s) for name, model in known.items()},
        task_s={name: fmean(each) for name, each in runs.items()},
        keys=tuple(sorted({each.key for each in fitting})),
    )


def _need(question: Question, model: str) -> int:
    return question.models.get(model, Model()).need_bytes
