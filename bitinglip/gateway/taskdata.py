"""What a task was asked, what it answered, and the end of both: parameters and result by themselves, forgetting."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import NoResult, TaskIsForgotten
from bitinglip.events import artifacts
from bitinglip.gateway import requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.gateway.tasks import links
from bitinglip.projections.rows import TaskRow
from bitinglip.tasks.commands import ForgetTask


async def get_params(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/params`: the parameters, wherever they are."""
    gateway, row = await _readable(request)
    return json(await _value(gateway, row.params, row.params_ref))


async def get_result(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/result`: the result, wherever it is."""
    gateway, row = await _readable(request)
    if row.state != "succeeded":
        raise NoResult(task_id=row.task_id, state=row.state)
    return json(await _value(gateway, row.result, row.result_ref))


async def forget(request: Request) -> Response:
    """Answer `POST /v1/tasks/{task_id}/forget`: destroy a private task's key; again, it changes nothing."""
    gateway = gateway_of(request)
    requests.only(request)
    task_id = requests.task_id_of(request)
    task = await gateway.inbox.forget(task_id, ForgetTask(by=gateway.key_id))
    gateway.recent.note_task(task_id, task.sequence, task.submitted.batch_id)
    return json({"task_id": task_id, "state": task.state, "forgotten": True, "links": links(task_id)})


async def _readable(request: Request) -> tuple[Gateway, TaskRow]:
    gateway = gateway_of(request)
    requests.only(request)
    row = await gateway.task(requests.task_id_of(request))
    if row.forgotten_at is not None:
        raise TaskIsForgotten(task_id=row.task_id)
    return gateway, row


async def _value(gateway: Gateway, value: Any, reference: dict[str, Any] | None) -> Any:
    if reference is None:
        return value
    body, _ = await artifacts.get(gateway.log.connection, reference["sha256"])
    return orjson.loads(body)
