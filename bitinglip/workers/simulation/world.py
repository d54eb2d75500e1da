"""What is simulated: cards, models, and tasks that come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bitinglip.workers.view import ModelView

LANES = ("interactive", "normal", "batch")


@dataclass(slots=True)
class Task:
    """One task, and what became of it."""

    at: float
    lane: str
    key: str
    reference: str
    run_s: float
    started: float = math.nan


@dataclass(slots=True)
class Card:
    """A card as it really is."""

    name: str
    budget: int
    """Bytes that models may take of it."""
    held: dict[str, float] = field(default_factory=dict[str, float])
    """Model -> when it was loaded; the least recently used one first."""
    loading: str | None = None
    busy: bool = False
    worked_at: float = 0.0
    busy_s: float = 0.0
    loads: int = 0


@dataclass(slots=True)
class World:
    """Where the tasks come."""

    cards: list[Card]
    models: dict[str, ModelView]
    task_s: dict[str, float]
    """Model -> mean seconds of a task."""
    keys: Sequence[str]
    """API keys that tasks are of."""
    horizon_s: float = math.inf
    """Until when it is looked at; infinite: to the end of the last task."""
    seed: int = 1
    weights: list[float] = field(default_factory=list[float])
    """How popular each model is, for schedulers that know that beforehand."""
