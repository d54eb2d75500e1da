"""The cluster: workers, and how deep its queues are."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.gateway import liveness, requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json


async def workers(request: Request) -> Response:
    """Answer `GET /v1/workers`."""
    requests.only(request)
    return json({"workers": await liveness.workers(gateway_of(request))})


async def queue_depths(log: EventLog) -> dict[Route, int]:
    """Return how many tasks wait or run, by queue.

    Raises:
        NoServer: the log cannot be asked.
    """
    if not log.connected:
        raise NoServer(problem="the connection is away")
    return {state.route: state.waiting + state.running for state in await log.queue_states()}
