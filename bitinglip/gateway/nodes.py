"""Nodes and their workers: look at them, and have them do something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NodeNotFound, WorkerNotFound
from bitinglip.events import subjects
from bitinglip.events.service import command
from bitinglip.gateway import bodies, liveness, past, pastviews, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.rows import NodeRow, WorkerRow

ANSWER_S = 5.0
"""How long a node may take to answer."""
DISK_S = 30.0
"""The same for what makes it read or change a disk."""
LINES, LINES_MOST = 100, 2_000

Handler = Callable[[Request], Awaitable[Response]]


class Prune(BaseModel):
    """What is to be dropped: the body of `POST /v1/nodes/{node_id}/models:prune`, which may be left out."""

    model_config = ConfigDict(extra="forbid")

    dry_run: bool = Field(default=False, description="Only say what would be dropped.")
    idle_days: float | None = Field(
        default=None,
        ge=0,
        le=36_500,
        description="Drop what was not used for so many days; none: the node's own bound.",
    )


class Labels(BaseModel):
    """Labels of a node to be set, or, with null, taken away."""

    model_config = ConfigDict(extra="forbid")

    labels: dict[str, str | None] = Field(max_length=64)


async def nodes(request: Request) -> Response:
    """Answer `GET /v1/nodes`."""
    requests.only(request, (past.AS_OF,))
    gateway = gateway_of(request)
    silence = liveness.silence(gateway.settings.node.heartbeat_s)
    then = await past.listed(request, "nodes", lambda state: pastviews.nodes(state, silence))
    return json(then or {"nodes": await liveness.nodes(gateway)})


async def node(request: Request) -> Response:
    """Answer `GET /v1/nodes/{node_id}`."""
    requests.only(request)
    return json(await _node(request))


async def status(request: Request) -> Response:
    """Answer `GET /v1/nodes/{node_id}/status`: the node as its agent sees it now."""
    requests.only(request)
    return json(await _tell(gateway_of(request), (await _node(request)).node_id, "status", {}))


async def worker(request: Request) -> Response:
    """Answer `GET /v1/workers/{worker_id}`."""
    requests.only(request)
    return json(await _worker(request))


async def labels(request: Request) -> Response:
    """Answer `POST /v1/nodes/{node_id}/labels`."""
    gateway = gateway_of(request)
    requests.only(request)
    change = await bodies.read(request, Labels)
    return json(await _tell(gateway, (await _node(request)).node_id, "labels", change.model_dump()))


async def logs(request: Request) -> Response:
    """Answer `GET /v1/workers/{worker_id}/logs`: the last lines."""
    requests.only(request, ("lines",))
    lines = requests.number("lines", requests.one(request, "lines"), LINES, 1, LINES_MOST)
    found = await _worker(request)
    return json(await _tell(gateway_of(request), found.node_id, "logs", {"worker_id": found.worker_id, "lines": lines}))


async def disk_use(request: Request) -> Response:
    """Answer `GET /v1/nodes/{node_id}/models`: what the node has of models on its disk, asked of its agent."""
    requests.only(request)
    return json(await _tell(gateway_of(request), (await _node(request)).node_id, "du", {}, DISK_S))


async def prune(request: Request) -> Response:
    """Answer `POST /v1/nodes/{node_id}/models:prune`: drop what nothing needs, or say what that would be."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = await bodies.read_if_given(request, Prune)
    return json(
        await _tell(gateway, (await _node(request)).node_id, "prune", asked.model_dump(exclude_none=True), DISK_S)
    )


def tell_node(name: str) -> Handler:
    """Return what answers `POST /v1/nodes/{node_id}/<name>`: the node as it is then."""

    async def handle(request: Request) -> Response:
        requests.only(request)
        return json(await _tell(gateway_of(request), (await _node(request)).node_id, name, {}), 202)

    return handle


def tell_worker(name: str) -> Handler:
    """Return what answers `POST /v1/workers/{worker_id}/<name>`: the worker as its agent sees it then."""

    async def handle(request: Request) -> Response:
        requests.only(request)
        found = await _worker(request)
        body = {"worker_id": found.worker_id}
        return json(await _tell(gateway_of(request), found.node_id, f"worker-{name}", body), 202)

    return handle


async def _tell(
    gateway: Gateway, node_id: str | None, name: str, body: dict[str, Any], timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    node_id = node_id or "unknown"
    subject = subjects.node_command(node_id, name)
    return await command(gateway.log.connection, node_id, subject, {"by": gateway.key_id} | body, timeout_s)


async def _node(request: Request) -> NodeRow:
    node_id: str = request.path_params["node_id"]
    found = next((row for row in await liveness.nodes(gateway_of(request)) if row.node_id == node_id), None)
    if found is None:
        raise NodeNotFound(node_id=node_id[:200])
    return found


async def _worker(request: Request) -> WorkerRow:
    worker_id: str = request.path_params["worker_id"]
    rows = await liveness.workers(gateway_of(request))
    found = next((row for row in rows if row.worker_id == worker_id), None)
    if found is None:
        raise WorkerNotFound(worker_id=worker_id[:200])
    return found
