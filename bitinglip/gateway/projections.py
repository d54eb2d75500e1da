"""The projections: what of them there is, making them anew, and copies of them for gateways that start."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.gateway import bodies, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.readmodel import VersionState


class Rebuild(BaseModel):
    """What is to be made anew: the body of `POST /v1/projections/rebuild`, which may be left out."""

    model_config = ConfigDict(extra="forbid")

    projection: str | None = Field(
        default=None, min_length=1, max_length=200, description="Only this projection; none: the whole read model."
    )


async def list_projections(request: Request) -> Response:
    """Answer `GET /v1/projections`: each version of a projection, those that serve and those that are being made."""
    requests.only(request)
    return json({"projections": await _projections(gateway_of(request))})


async def rebuild(request: Request) -> Response:
    """Answer `POST /v1/projections/rebuild`: make all anew, and answer when it is done; or begin to make one anew."""
    requests.only(request)
    asked, gateway = await bodies.read_if_given(request, Rebuild), gateway_of(request)
    if asked.projection is not None:
        await gateway.readmodel.rebuild_one(asked.projection)
        shown = [state for state in await _projections(gateway) if state["projection"] == asked.projection]
        return json({"projections": shown}, 202)
    started = time.perf_counter()
    await gateway.readmodel.rebuild()
    return json({"rebuilt": True, "elapsed_ms": round((time.perf_counter() - started) * 1000, 3)})


async def snapshot(request: Request) -> Response:
    """Answer `POST /v1/projections/snapshot`: store a copy of the read model, and tell of it."""
    requests.only(request)
    made = await gateway_of(request).readmodel.snapshot()
    return json(
        {"file": made.file, "checkpoints": made.checkpoints, "size_bytes": made.size_bytes, "sha256": made.sha256}, 201
    )


async def _projections(gateway: Gateway) -> list[dict[str, Any]]:
    return [_shown(gateway, state) for state in await gateway.readmodel.projections()]


def _shown(gateway: Gateway, state: VersionState) -> dict[str, Any]:
    return {
        "projection": state.projection,
        "version": state.version,
        "state": "serving" if state.serving else "building",
        "current": state.current,
        "rows": state.rows,
        "checkpoint": state.checkpoint,
        "target": {stream: gateway.readmodel.applied(stream) for stream in state.checkpoint},
    }
