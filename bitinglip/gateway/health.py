"""Health: is the process alive, can it serve, and how is it doing."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import timedelta

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer, ProjectionBehind
from bitinglip.events.clock import SKEW_MOST_S, skew_of, told_skew
from bitinglip.events.log import EventLog
from bitinglip.events.store import store_limit, stored_bytes
from bitinglip.events.subjects import decode_queue
from bitinglip.gateway import metrics
from bitinglip.gateway.cluster import queue_depths
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json

FRESH_S = 60.0
"""How long a worker's last readings are told, or three of its heartbeats, if that is longer."""


async def healthz(_: Request) -> Response:
    """Answer `GET /healthz`: the process lives."""
    return json({"status": "ok"})


async def readyz(request: Request) -> Response:
    """Answer `GET /readyz`: the log is connected and the read model has caught up once, or which of them is not so."""
    gateway = gateway_of(request)
    if not gateway.log.connected:
        raise NoServer(problem="the connection is away; it comes back by itself")
    if not gateway.readmodel.ready:
        lag = max(await gateway.readmodel.lag(), key=lambda lag: lag.last - lag.applied)
        raise ProjectionBehind(sequence=lag.last, applied=lag.applied)
    ready = {"status": "ready", "log": "connected", "read_model": "ready"}
    taken, limit = await store_usage(gateway.log)
    ratio = sum(taken.values()) / limit
    if ratio >= gateway.settings.gateway.store_warn_ratio:
        told = f"{ratio:.0%} of {limit} bytes are taken; when it is full, no task is accepted"
        ready |= {"status": "degraded", "log": told}
    if abs(skew_s := skew_of(gateway.log.clock)) > SKEW_MOST_S:
        ready |= {"status": "degraded", "clock": told_skew(skew_s)}
    return json(ready)


async def store_usage(log: EventLog) -> tuple[dict[str, int], int]:
    """Return what each stream takes, and how much all of them may.

    Raises:
        NoServer: the log cannot be asked.
    """
    return await stored_bytes(log.connection), await store_limit(log.connection)


async def prometheus(request: Request) -> Response:
    """Answer `GET /metrics`; what needs the log is left out while that is away."""
    gateway = gateway_of(request)
    gateway.metrics.connected.set(gateway.log.connected)
    gateway.metrics.queue_depth.clear()
    gateway.metrics.lag.clear()
    with suppress(NoServer):
        await _ask_log(gateway)
    gateway.metrics.tasks.clear()
    for state, count in (await gateway.readmodel.queries.counts()).items():
        gateway.metrics.tasks.labels(state).set(count)
    await _tell_devices(gateway)
    return Response(gateway.metrics.render(), media_type=metrics.CONTENT_TYPE)


async def _tell_devices(gateway: Gateway) -> None:
    fresh = timedelta(seconds=max(FRESH_S, 3 * gateway.settings.worker.heartbeat_s))
    oldest = gateway.log.clock() - fresh
    workers = [row for row in await gateway.readmodel.queries.workers() if row.state == "started"]
    for column, gauge in gateway.metrics.devices.items():
        gauge.clear()
        for worker in workers:
            value = getattr(worker, column)
            if value is not None and worker.seen_at >= oldest:
                gauge.labels(worker.worker_id, worker.node_id).set(value)


async def _ask_log(gateway: Gateway) -> None:
    depths: Counter[tuple[str, str]] = Counter()
    for route, depth in (await queue_depths(gateway.log)).items():
        depths[route.lane, decode_queue(route.queue)[0]] += depth
    for (lane, model), depth in depths.items():
        gateway.metrics.queue_depth.labels(lane, model).set(depth)
    taken, limit = await store_usage(gateway.log)
    for stream, size in taken.items():
        gateway.metrics.stream_bytes.labels(stream).set(size)
    gateway.metrics.store_ratio.set(sum(taken.values()) / limit)
    for lag in await gateway.readmodel.lag():
        gateway.metrics.lag.labels(lag.stream).set(lag.last - lag.applied)
