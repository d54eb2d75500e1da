"""What a worker does next: a pure function of the facts it sees.

A card stays on the models that it holds while these have work: `Pull`. What else it should load, and when that is
worth it, is in the plan that every worker makes alike from the facts about all of them (`loading`): `Load`. With
nothing to do it stands on the queues of its own models, and on those that the plan gives to it alone: `Wait`.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace

from bitinglip.workers.fairness import charge, rank
from bitinglip.workers.loading import evicted
from bitinglip.workers.view import RouteView, WorkerView

MOST_ASKED = 12
"""Routes that are asked without knowing that they have work; asking one takes a round trip."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask these routes for work in turn, until one has some."""

    routes: tuple[RouteView, ...]
    empty: tuple[RouteView, ...] = ()
    """Routes that are not asked, for they are known to be empty."""


@dataclass(frozen=True, slots=True)
class Load:
    """Drop the `evicts`, load a model, and run what waits on its routes."""

    reference: str
    evicts: tuple[str, ...]
    routes: tuple[RouteView, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing was there on any route: wait for the first of them to have work."""

    routes: tuple[RouteView, ...]


def decide(view: WorkerView) -> Pull | Load | Wait:
    """Return what to do next."""
    if view.plan is None:
        ordered = _ordered(view, view.routes)
        return Wait(ordered) if view.idle else Pull(ordered)
    if not view.idle and not _at_hand(view):
        view = replace(view, idle=True)
    return _ordered_load(view) or _pull(view) or _preload(view) or _wait(view)


def after_service(view: WorkerView, route: RouteView, tasks: int, empty: Iterable[RouteView]) -> WorkerView:
    """Return the view after so many tasks of a route were served, and the `empty` routes were found without work."""
    return replace(view, passes=charge(view.passes, route, tasks, empty, view.share_weights))


def _ordered_load(view: WorkerView) -> Load | None:
    """Return the load that the plan orders, if the facts that it was made of still hold for this card."""
    assert view.plan is not None
    order = view.plan.loads.get(view.card.worker_id)
    if order is None or order.reference in view.loaded or not (view.idle or order.switches):
        return None
    return _load(view, order.reference)


def _preload(view: WorkerView) -> Load | None:
    """Return the load of a pinned model that is not in memory, on a card that has nothing else to do."""
    wanted = sorted(view.card.pinned - view.loaded)
    loads = (_load(view, reference) for reference in wanted if reference in view.models)
    return next((load for load in loads if load is not None), None)


def _load(view: WorkerView, reference: str) -> Load | None:
    evicts = evicted(view.card, view.models[reference]) if reference in view.models else None
    return None if evicts is None else Load(reference, evicts, _ordered(view, [reference]))


def _pull(view: WorkerView) -> Pull | None:
    if view.idle:
        return None
    routes = _served(view, _at_hand(view))
    if len(routes) <= MOST_ASKED:
        return Pull(_in_turn(view, routes)) if routes else None
    asked = [route for route in routes if route.depth != 0]
    empty = tuple(route for route in routes if route.depth == 0)
    return Pull(_in_turn(view, asked), empty) if asked else None


def _wait(view: WorkerView) -> Wait:
    assert view.plan is not None
    ours = view.plan.waits.get(view.card.worker_id, frozenset()) & view.models.keys()
    return Wait(_ordered(view, _at_hand(view) | ours))


def _at_hand(view: WorkerView) -> Set[str]:
    """Return the models that can run at once: those in memory, and those that take no time to load."""
    assert view.plan is not None
    return (view.loaded & view.routes.keys()) | (view.plan.weightless & view.models.keys())


def _ordered(view: WorkerView, references: Iterable[str]) -> tuple[RouteView, ...]:
    """Return the routes of these models that this card may serve, the first to be asked first."""
    return _in_turn(view, _served(view, references))


def _served(view: WorkerView, references: Iterable[str]) -> list[RouteView]:
    routes = (route for reference in references for route in view.routes.get(reference, ()))
    return [route for route in routes if view.card.meets(route.requires)]


def _in_turn(view: WorkerView, routes: Iterable[RouteView]) -> tuple[RouteView, ...]:
    return tuple(sorted(routes, key=lambda route: rank(route, view.passes, view.loaded)))
