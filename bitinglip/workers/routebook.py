"""The queues that a worker serves: those of its models for anybody's work, and all others whose work it may take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, decode_queue, encode_queue
from bitinglip.events.task import LANES
from bitinglip.workers.names import Names
from bitinglip.workers.view import ANY, CardView, Requires, Routes, RouteView

NO_NAMES = Names()


def common_routes(references: Iterable[str], names: Names = NO_NAMES) -> Routes:
    """Return the routes of anybody's work for these models."""
    return _by_model(_named(RouteView(lane, reference), names) for reference in references for lane in LANES)


def regrouped(views: Iterable[RouteView], names: Names) -> Routes:
    """Return the routes, by the models that they lead to now that these are the names."""
    return _by_model(_named(view, names) for view in views)


def name_in(view: RouteView) -> str:
    """Return the name by which a route's model is asked for."""
    return view.asked or view.reference


def with_route(routes: Routes, route: Route, card: CardView, names: Names = NO_NAMES) -> Routes:
    """Return the routes with one more, if it is for one of their models and the card has what its work requires."""
    view = view_of(route, names)
    known = routes.get(view.reference)
    if known is None or not card.meets(view.requires) or any(route_of(other) == route for other in known):
        return routes
    return {**routes, view.reference: (*known, view)}


def fitting(routes: Routes, card: CardView) -> Routes:
    """Return the routes without those whose work requires what the card does not have."""
    return {
        reference: tuple(view for view in views if card.meets(view.requires)) for reference, views in routes.items()
    }


def view_of(route: Route, names: Names = NO_NAMES) -> RouteView:
    """Return a queue as the policy sees it."""
    reference, work = decode_queue(route.queue)
    requires = Requires(work.vram_gb, frozenset(work.labels)) if work.vram_gb or work.labels else ANY
    return _named(RouteView(route.lane, reference, work.share, requires), names)


def route_of(view: RouteView) -> Route:
    """Return the queue that a view is of."""
    work = WorkClass(view.share, view.requires.vram_gb, tuple(sorted(view.requires.labels)))
    return Route(view.lane, encode_queue(name_in(view), work))


def _named(view: RouteView, names: Names) -> RouteView:
    asked, model = name_in(view), names.of(name_in(view))
    return replace(view, reference=model, asked="" if model == asked else asked)


def _by_model(views: Iterable[RouteView]) -> Routes:
    found: dict[str, list[RouteView]] = defaultdict(list)
    for view in views:
        found[view.reference].append(view)
    return {model: tuple(views) for model, views in found.items()}
