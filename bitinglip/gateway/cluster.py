"""The cluster: all that there is in one answer, now or at a moment; its workers; how deep its queues are."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS, Route
from bitinglip.gateway import liveness, models, past, pastviews, queues, requests, schedules
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json


async def workers(request: Request) -> Response:
    """Answer `GET /v1/workers`."""
    requests.only(request, (past.AS_OF,))
    gateway = gateway_of(request)
    silence = liveness.silence(gateway.settings.worker.heartbeat_s)
    then = await past.listed(request, "workers", lambda state: pastviews.workers(state, silence))
    return json(then or {"workers": await liveness.workers(gateway)})


async def cluster(request: Request) -> Response:
    """Answer `GET /v1/cluster`: tasks by state, nodes, workers, queues, models, batches and schedules."""
    requests.only(request, (past.AS_OF,))
    gateway = gateway_of(request)
    if (moment := await past.moment_of(request)) is not None:
        silence = pastviews.Silence.of(gateway.settings)
        return json(await past.at(request, moment, lambda state: pastviews.cluster(state, silence)))
    batches, _ = await gateway.readmodel.queries.batches(limit=pastviews.BATCHES_MOST)
    return json({
        past.AS_OF: {"time": gateway.log.clock(), "sequence": gateway.readmodel.applied(TASKS)},
        "tasks": await gateway.readmodel.queries.counts(),
        "nodes": await liveness.nodes(gateway),
        "workers": await liveness.workers(gateway),
        "queues": await queues.queues_now(gateway),
        "models": await models.models_now(gateway),
        "batches": batches,
        "schedules": await schedules.shown_now(gateway),
    })  # fmt: skip


async def queue_depths(log: EventLog) -> dict[Route, int]:
    """Return how many tasks wait or run, by queue.

    Raises:
        NoServer: the log cannot be asked.
    """
    if not log.connected:
        raise NoServer(problem="the connection is away")
    return {state.route: state.waiting + state.running for state in await log.queue_states()}
