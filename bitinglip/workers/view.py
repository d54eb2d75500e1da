"""The facts that the scheduling policy sees: values, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RouteView:
    """The work for one model in one lane."""

    lane: str
    reference: str


@dataclass(frozen=True, slots=True)
class LaneView:
    """How much of this worker a lane has had."""

    served_pass: float = 0.0
    """Tasks served, divided by the lane's weight."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """All that a worker's next step depends on."""

    routes: tuple[RouteView, ...]
    lanes: Mapping[str, LaneView]
    loaded: frozenset[str] = frozenset()
    """References of the models in memory."""
    idle: bool = False
    """Whether the last round over the routes found nothing."""
