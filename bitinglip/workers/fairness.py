"""Sharing a worker: among lanes by weight, in a lane among shares, for a share among its models.

Stride scheduling (Waldspurger and Weihl 1995) at each of the three levels: every task served moves the pass of its
lane, of its share in that lane, and of its model in that share, on by 1/weight; the least pass is served first. So
`batch` gets its part however long `interactive` is, a key with a thousand tasks does not keep one with ten waiting,
and whoever had nothing to do meanwhile has saved nothing up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bitinglip.workers.view import RouteView

WEIGHTS: dict[str, int] = {"interactive": 16, "normal": 4, "batch": 1}

Path = tuple[str, ...]
Passes = Mapping[Path, float]
"""Tasks served, divided by weight, of (lane,), (lane, share) and (lane, share, model)."""


def paths(route: RouteView) -> tuple[Path, Path, Path]:
    """Return whose passes a route's tasks move on."""
    lane, share = route.lane, route.share
    return (lane,), (lane, share), (lane, share, route.reference)


def rank(route: RouteView, passes: Passes, loaded: frozenset[str]) -> tuple[float | int | bool | str, ...]:
    """Order routes: least passes first; among equals the more urgent lane, a loaded model, the longest wait."""
    lane, share, model = paths(route)
    return (
        passes.get(lane, 0.0),
        -WEIGHTS[route.lane],
        passes.get(share, 0.0),
        route.share,
        passes.get(model, 0.0),
        route.reference not in loaded,
        -route.oldest_s,
        route.reference,
    )


def charge(
    passes: Passes,
    route: RouteView,
    tasks: int,
    empty: Iterable[RouteView],
    share_weights: Mapping[str, float],
) -> dict[Path, float]:
    """Return the passes after so many tasks of a route were served, and the `empty` routes had none."""
    served = dict(passes)
    ours = paths(route)
    siblings: dict[Path, list[Path]] = {path[:-1]: [] for path in ours}
    for known in passes:
        if known[:-1] in siblings:
            siblings[known[:-1]].append(known)
    weights = (WEIGHTS[route.lane], share_weights.get(route.share, 1.0), 1.0)
    for path, weight, without in zip(ours, weights, _without(route, empty), strict=True):
        others = [served[known] for known in siblings[path[:-1]] if known not in without and known != path]
        if path not in served:
            served[path] = max(0.0, min(others, default=0.0) - tasks / weight)  # it may have waited all along
        least = min([served[path] + tasks / weight, *others])
        served[path] += tasks / weight
        for known in without - {path}:
            served[known] = max(served.get(known, 0.0), least)
    return served


def _without(route: RouteView, empty: Iterable[RouteView]) -> tuple[set[Path], set[Path], set[Path]]:
    """Return which lanes, shares of the route's lane, and models of its share there had no work."""
    empty = list(empty)
    in_lane = [other for other in empty if other.lane == route.lane]
    in_share = [other for other in in_lane if other.share == route.share]
    return (
        {(lane,) for lane in {other.lane for other in empty}},
        {(route.lane, share) for share in {other.share for other in in_lane}},
        {(route.lane, route.share, other.reference) for other in in_share},
    )
