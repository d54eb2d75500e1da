"""The cluster: workers, models and queues."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
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
    return json({"queues": [{"lane": lane, "model": model, "depth": depth} for (lane, model), depth in depths.items()]})


async def queue_depths(log: EventLog) -> dict[tuple[str, str], int]:
    """Return how many tasks wait or run, by lane and model.

    Raises:
        NoServer: the log cannot be asked.
    """
    if not log.connected:
        raise NoServer(problem="the connection is away")
    depths: dict[tuple[str, str], int] = {}
    for name, depth in sorted((await log.queue_depths()).items()):
        lane, _, token = name.partition("-")
        depths[lane, subjects.decode_token(token)] = depth
    return depths
