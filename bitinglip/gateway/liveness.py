"""Which nodes and workers live: one that fell silent without a goodbye is told of as such, wherever it is told of."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from bitinglip.gateway.context import Gateway
from bitinglip.projections.rows import NodeRow, WorkerRow

FRESH_S = 60.0
"""How long a node or a worker lives after its last sign of life, or for three of its heartbeats, if that is longer."""


async def nodes(gateway: Gateway) -> list[NodeRow]:
    """Return the nodes; one that went silent is `offline`."""
    since, rows = nodes_since(gateway), await gateway.readmodel.queries.nodes()
    return [row if row.seen_at >= since else replace(row, state="offline") for row in rows]


async def workers(gateway: Gateway) -> list[WorkerRow]:
    """Return the workers; one that went silent is `gone`, whether there is a node's agent that could say so or not."""
    since, rows = workers_since(gateway), await gateway.readmodel.queries.workers()
    return [row if row.seen_at >= since or row.state == "stopped" else replace(row, state="gone") for row in rows]


def nodes_since(gateway: Gateway) -> datetime:
    """Return since when a node must have said something to live."""
    return _since(gateway, gateway.settings.node.heartbeat_s)


def workers_since(gateway: Gateway) -> datetime:
    """Return the same for a worker."""
    return _since(gateway, gateway.settings.worker.heartbeat_s)


def silence(heartbeat_s: float) -> timedelta:
    """Return how long one lives after its last sign of life."""
    return timedelta(seconds=max(FRESH_S, 3 * heartbeat_s))


def _since(gateway: Gateway, heartbeat_s: float) -> datetime:
    return gateway.log.clock() - silence(heartbeat_s)
