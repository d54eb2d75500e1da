"""What a worker does next: a pure function of the facts it sees.

Lanes share a worker by weight (stride scheduling, Waldspurger and Weihl 1995): each task served moves its lane's pass
on by 1/weight, and the lane with the least pass is served first. So `batch` gets its share however long `interactive`
is, and a lane that was empty meanwhile has saved nothing up.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.workers.view import LaneView, RouteView, WorkerView

WEIGHTS: dict[str, int] = {"interactive": 16, "normal": 4, "batch": 1}


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask these routes for work in turn, until one has some."""

    routes: tuple[RouteView, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing was there on any route: wait for the first of them to have work."""

    routes: tuple[RouteView, ...]


def decide(view: WorkerView) -> Pull | Wait:
    """Return what to do next."""
    ordered = tuple(sorted(view.routes, key=lambda route: _rank(route, view)))
    return Wait(ordered) if view.idle else Pull(ordered)


def after_service(view: WorkerView, lane: str, tasks: int, empty: frozenset[str]) -> WorkerView:
    """Return the view after so many tasks of a lane were served, and `empty` lanes were found without work."""
    lanes = {name: LaneView(seen.served_pass) for name, seen in view.lanes.items()}
    lanes[lane] = LaneView(lanes[lane].served_pass + tasks / WEIGHTS[lane])
    least = min((seen.served_pass for name, seen in lanes.items() if name not in empty), default=0.0)
    for name in empty:
        lanes[name] = LaneView(max(lanes[name].served_pass, least))
    return WorkerView(routes=view.routes, lanes=lanes, loaded=view.loaded, idle=view.idle)


def _rank(route: RouteView, view: WorkerView) -> tuple[float, int, bool, str]:
    """Least pass first, the more urgent lane first among equals, and a loaded model before one that is not."""
    return (
        view.lanes[route.lane].served_pass,
        -WEIGHTS[route.lane],
        route.reference not in view.loaded,
        route.reference,
    )
