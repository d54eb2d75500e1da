"""Health: is the process alive, can it serve, and how is it doing."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoServer, ProjectionBehind
from bitinglip.events.clock import SKEW_MOST_S, skew_of, told_skew
from bitinglip.events.log import EventLog
from bitinglip.events.store import store_limit, stored_bytes
from bitinglip.events.streams import Route
from bitinglip.events.subjects import decode_queue
from bitinglip.gateway import liveness, metrics
from bitinglip.gateway.cluster import queue_depths
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.fleetmetrics import Fleet
from bitinglip.gateway.responses import json

READ_MODEL_S = 5.0
"""How long a scrape waits for the read model."""


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
    if (told := await gateway.archiver.warning()) is not None:
        ready |= {"status": "degraded", "archive": told}
    if (problem := gateway.readmodel.problem) is not None:
        ready |= {"status": "degraded", "read_model": f"it falls behind: {problem}"}
    if corrupt := {stream: count for stream, count in gateway.readmodel.corrupt.items() if count}:
        ready |= {"corrupt_events": ", ".join(f"{stream}: {count}" for stream, count in corrupt.items())}
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
    """Answer `GET /metrics`; what the log or the read model cannot tell now is left out."""
    gateway = gateway_of(request)
    gateway.metrics.connected.set(gateway.log.connected)
    gateway.metrics.queue_depth.clear()
    gateway.metrics.key_depth.clear()
    gateway.metrics.lag.clear()
    gateway.metrics.corrupt.told = {(stream,): count for stream, count in gateway.readmodel.corrupt.items()}
    with suppress(NoServer):
        await _ask_log(gateway)
    await _ask_read_model(gateway)
    return Response(gateway.metrics.render(), media_type=metrics.CONTENT_TYPE)


async def _ask_read_model(gateway: Gateway) -> None:
    """Tell what it has; nothing, rather than keep a scrape waiting, while a rebuilt one is being swapped in."""
    try:
        async with asyncio.timeout(READ_MODEL_S):
            counts, fleet = await gateway.readmodel.queries.counts(), await _fleet(gateway)
    except TimeoutError:
        gateway.metrics.tasks.clear()
        gateway.metrics.fleet.forget()
        return
    gateway.metrics.tasks.clear()
    for state, count in counts.items():
        gateway.metrics.tasks.labels(state).set(count)
    gateway.metrics.fleet.tell(fleet)


async def _fleet(gateway: Gateway) -> Fleet:
    queries = gateway.readmodel.queries
    return Fleet(
        await queries.nodes(),
        await queries.workers(),
        await queries.worker_restarts(),
        nodes_since=liveness.nodes_since(gateway),
        workers_since=liveness.workers_since(gateway),
    )


async def _ask_log(gateway: Gateway) -> None:
    _tell_depths(gateway, await queue_depths(gateway.log))
    taken, limit = await store_usage(gateway.log)
    for stream, size in taken.items():
        gateway.metrics.stream_bytes.labels(stream).set(size)
    gateway.metrics.store_ratio.set(sum(taken.values()) / limit)
    for behind in await gateway.archiver.behind():
        gateway.metrics.archive_behind_events.labels(behind.stream).set(behind.last - behind.archived_to)
        gateway.metrics.archive_behind_s.labels(behind.stream).set(behind.waits_s)
    for lag in await gateway.readmodel.lag():
        gateway.metrics.lag.labels(lag.stream).set(lag.last - lag.applied)


def _tell_depths(gateway: Gateway, found: dict[Route, int]) -> None:
    queues: Counter[tuple[str, str]] = Counter()
    keys: Counter[str] = Counter()
    for route, depth in found.items():
        model, work = decode_queue(route.queue)
        queues[route.lane, model] += depth
        keys[work.share] += depth
    for (lane, model), depth in queues.items():
        gateway.metrics.queue_depth.labels(lane, model).set(depth)
    for key_id, depth in keys.items():
        gateway.metrics.key_depth.labels(key_id).set(depth)
