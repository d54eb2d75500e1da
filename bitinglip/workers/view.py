"""The facts that the scheduling policy sees: values, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitinglip.workers.loading import Plan

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Requires:
    """What work asks of the card that runs it."""

    vram_gb: float = 0.0
    """GiB that the card has at least, taken ones included."""
    labels: frozenset[str] = frozenset()
    """Words that the worker has, all of them."""


ANY = Requires()


@dataclass(frozen=True, slots=True)
class RouteView:
    """The work for one model in one lane, of one share."""

    lane: str
    reference: str
    share: str = ""
    """Token of the API key whose work it is; empty where there are no keys."""
    requires: Requires = ANY
    asked: str = ""
    """Name by which it is asked for, if it is another one: `org/m@commit` for `org/m` (`names`)."""
    depth: int | None = None
    """Tasks that wait; none: not known."""
    oldest_s: float = 0.0
    """Seconds that the oldest of them has waited."""
    task_s: float = 0.0
    """Seconds of a card that one of them takes, about."""
    rate: float = 0.0
    """Tasks that come in a second, of late."""


Routes = Mapping[str, tuple[RouteView, ...]]
"""Routes by the reference of their model."""


@dataclass(frozen=True, slots=True)
class ModelView:
    """What it takes to load a model."""

    reference: str
    need_bytes: int = 0
    """0: not known, or none."""
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """A model in a card's memory."""

    reference: str
    taken_bytes: int = 0
    held_s: float = 0.0
    """Seconds since it was loaded."""


@dataclass(frozen=True, slots=True)
class CardView:
    """A live worker, this one or a peer: what it has, and what it does."""

    worker_id: str
    node_id: str = ""
    labels: frozenset[str] = frozenset()
    total_bytes: int | None = None
    """Memory of the device; none: not known."""
    budget_bytes: int | None = None
    """What models may take of it; none: not known, and then the engine alone tells what fits."""
    most_loaded: int = 2
    """Most models in memory at a time."""
    loaded: tuple[Held, ...] = ()
    """Models in memory, the least recently used one first."""
    loading: str | None = None
    """The model that is being loaded."""
    idle: bool = False
    """Whether nothing runs, and nothing is there to run for what it has loaded."""
    idle_s: float = 0.0
    """Seconds since it ran something."""
    serves: frozenset[str] | None = None
    """The models that it may load; none: all."""
    pinned: frozenset[str] = frozenset()
    """The models that stay in memory."""
    revisions: Mapping[str, str] = field(default_factory=dict[str, str])
    """What it says that its models' revisions are."""

    def holds(self, reference: str) -> bool:
        """Tell whether a model is in memory."""
        return any(held.reference == reference for held in self.loaded)

    def meets(self, requires: Requires) -> bool:
        """Tell whether the card has what work requires; what is not known it has not."""
        return requires is ANY or ((self.total_bytes or 0) >= requires.vram_gb * GIB and requires.labels <= self.labels)


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What all workers see alike: a plan for all of them follows from it."""

    routes: Routes
    models: Mapping[str, ModelView]
    cards: tuple[CardView, ...]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """All that a worker's next step depends on."""

    routes: Routes
    card: CardView = CardView("")
    """This worker's card."""
    passes: Mapping[tuple[str, ...], float] = field(default_factory=dict[tuple[str, ...], float])
    """How much of this worker each lane, share and model has had; see `fairness`."""
    share_weights: Mapping[str, float] = field(default_factory=dict[str, float])
    """Weights of shares, where they are not 1."""
    loaded: frozenset[str] = frozenset()
    """References of the models in memory."""
    idle: bool = False
    """Whether the last round over the routes found nothing."""
    models: Mapping[str, ModelView] = field(default_factory=dict[str, ModelView])
    """The models that this worker may load."""
    plan: Plan | None = None
    """Who loads what; none: there is nothing to plan, or nothing is known yet."""
