"""The queues that a worker serves: those of its models for anybody's work, and all others whose work it may take."""

from __future__ import annotations

from collections.abc import Iterable

from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, decode_queue, encode_queue
from bitinglip.events.task import LANES
from bitinglip.workers.view import ANY, CardView, Requires, Routes, RouteView


def common_routes(references: Iterable[str]) -> Routes:
    """Return the routes of anybody's work for these models."""
    return {reference: tuple(RouteView(lane, reference) for lane in LANES) for reference in references}


def with_route(routes: Routes, route: Route, card: CardView) -> Routes:
    """Return the routes with one more, if it is for one of their models and the card has what its work requires."""
    view = view_of(route)
    known = routes.get(view.reference)
    if known is None or not card.meets(view.requires) or any(route_of(other) == route for other in known):
        return routes
    return {**routes, view.reference: (*known, view)}


def fitting(routes: Routes, card: CardView) -> Routes:
    """Return the routes without those whose work requires what the card does not have."""
    return {
        reference: tuple(view for view in views if card.meets(view.requires)) for reference, views in routes.items()
    }


def view_of(route: Route) -> RouteView:
    """Return a queue as the policy sees it."""
    reference, work = decode_queue(route.queue)
    requires = Requires(work.vram_gb, frozenset(work.labels)) if work.vram_gb or work.labels else ANY
    return RouteView(route.lane, reference, work.share, requires)


def route_of(view: RouteView) -> Route:
    """Return the queue that a view is of."""
    work = WorkClass(view.share, view.requires.vram_gb, tuple(sorted(view.requires.labels)))
    return Route(view.lane, encode_queue(view.reference, work))
