"""Watching one batch: how far it is, as often as that changes but at most twice a second, up to its completion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.events import subjects
from bitinglip.events.direct import get_last
from bitinglip.events.streams import TASKS
from bitinglip.gateway import requests, sse
from bitinglip.gateway.batches import batch_id_of
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.projections.rows import BatchRow

LOOK_S = 0.5
"""Time between two looks; one without new events in the log costs nothing."""
PROGRESS = "progress"


async def batch_events(request: Request) -> Response:
    """Answer `GET /v1/batches/{batch_id}/events`: how far it is, from now on, and `batch.completed` as the last one."""
    requests.only(request, ("after",))
    gateway, batch_id = gateway_of(request), batch_id_of(request)
    batch = await gateway.batches.read(batch_id)
    if batch.completed is not None and batch.sequence <= (requests.resume_after(request) or 0):
        return sse.nothing_more()
    await gateway.readmodel.wait(TASKS, max(batch.sequence, gateway.recent.of(batch_id)))
    return sse.frames_stream(gateway, sse.until_closed(_frames(gateway, batch_id), gateway.closing))


async def _frames(gateway: Gateway, batch_id: str) -> AsyncGenerator[bytes]:
    seen, told = -1, dict[str, Any]()
    while True:
        if seen != (applied := gateway.readmodel.applied(TASKS)):
            seen = applied
            rows, _ = await gateway.readmodel.queries.batches(batch_id=batch_id, limit=1)
            if rows and told != (now := _progress(rows[0])):
                told = now
                yield sse.told(PROGRESS, told)
            if told.get("state") == "completed":
                break
        await asyncio.sleep(LOOK_S)
    completed = subjects.batch_subject(batch_id, "batch.completed", None)
    last = await get_last(gateway.log.connection, TASKS, completed)
    assert last is not None  # the read model has it from there
    yield sse.frame(last)


def _progress(row: BatchRow) -> dict[str, Any]:
    return {
        "batch_id": row.batch_id,
        "state": row.state,
        "tasks": row.tasks,
        "done": row.done,
        "counts": row.counts,
    }
