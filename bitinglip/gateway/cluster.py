"""The cluster: workers, models and queues."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json


async def workers(request: Request) -> Response:
    """Answer `GET /v1/workers`."""
    requests.only(request)
    return json({"workers": await gateway_of(request).readmodel.queries.workers()})


async def models(request: Request) -> Response:
    """Answer `GET /v1/models`."""
    requests.only(request)
    return json({"models": await gateway_of(request).readmodel.queries.models()})


async def queues(request: Request) -> Response:
    """Answer `GET /v1/queues`: how many tasks wait or run; a queue is there once a worker has served it."""
    requests.only(request)
    depths = await queue_depths(gateway_of(request).log)
    return json({"queues": [_queue(route, depth) for route, depth in depths.items()]})


async def queue_depths(log: EventLog) -> dict[Route, int]:
    """Return how many tasks wait or run, by queue.

    Raises:
        NoServer: the log cannot be asked.
    """
    if not log.connected:
        raise NoServer(problem="the connection is away")
    depths = await log.queue_depths()
    return {Route(*name.split("-", 1)): depths[name] for name in sorted(depths) if subjects.is_consumer_name(name)}


def _queue(route: Route, depth: int) -> dict[str, Any]:
    model, work = subjects.decode_queue(route.queue)
    requires = {"vram_gb": work.vram_gb, "label": work.labels} if work.vram_gb or work.labels else None
    return {"lane": route.lane, "model": model, "key": work.share or None, "requires": requires, "depth": depth}
