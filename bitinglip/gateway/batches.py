"""Batches: make, list, look at."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import BatchNotFound, InvalidInput
from bitinglip.events.batch import BatchOpened
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway import requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.gateway.tasks import idempotency_key
from bitinglip.ids import is_ulid
from bitinglip.tasks import media
from bitinglip.tasks.batches import CreateBatch, batch_id_for, member_id
from bitinglip.tasks.commands import SubmitTask

LIMIT, LIMIT_MOST = 50, 1000


async def create(request: Request) -> Response:
    """Answer `POST /v1/batches`: all of its tasks are taken, or none."""
    gateway = gateway_of(request)
    requests.only(request)
    key = idempotency_key(request)
    asked = CreateBatch.from_json(await requests.read_json(request, gateway.settings.gateway.max_body_bytes))
    commands = asked.commands()
    batch_id = batch_id_for(gateway.key_id, key) if key is not None else gateway.log.ids()
    members = [await _prepared(gateway, each, batch_id, index) for index, each in enumerate(commands)]
    for each in members:
        gateway.pressure.admit(each)
    for each in members:
        await gateway.queues.ensure(each)
    opened = BatchOpened(
        batch_id=batch_id,
        name=asked.name,
        metadata=asked.metadata,
        key_id=gateway.key_id,
        request_sha256=asked.sha256(),
    )
    sequence, created = await gateway.batches.create(opened, members, key, request.scope["request_id"])
    gateway.recent.note(batch_id, sequence)
    headers = {"Location": f"/v1/batches/{batch_id}"} | ({} if created else {"Idempotency-Replayed": "true"})
    return json(_accepted(batch_id, len(members), sequence), 202, headers)


async def list_batches(request: Request) -> Response:
    """Answer `GET /v1/batches`: the newest first, a page at a time."""
    requests.only(request, ("limit", "cursor"))
    limit = requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST)
    cursor = requests.one(request, "cursor")
    rows, next_cursor = await gateway_of(request).readmodel.queries.batches(limit=limit, cursor=cursor)
    return json({"batches": rows, "next_cursor": next_cursor})


async def get_batch(request: Request) -> Response:
    """Answer `GET /v1/batches/{batch_id}`."""
    requests.only(request)
    gateway, batch_id = gateway_of(request), request.path_params["batch_id"]
    if not is_ulid(batch_id):
        raise InvalidInput(field="batch_id", problem="must be a ULID: 26 characters, as in 01JZ0000000000000000000000")
    sequence = gateway.recent.of(batch_id)
    if not sequence:
        batch = await gateway.batches.read(batch_id)
        if batch is None:
            raise BatchNotFound(batch_id=batch_id)
        sequence = batch.sequence
    await gateway.readmodel.wait(TASKS, sequence)
    rows, _ = await gateway.readmodel.queries.batches(batch_id=batch_id, limit=1)
    if not rows:
        raise BatchNotFound(batch_id=batch_id)
    return json(rows[0])


async def _prepared(gateway: Gateway, command: SubmitTask, batch_id: str, index: int) -> TaskSubmitted:
    await gateway.catalogue.require(command.model, command.kind)
    try:
        command = await media.resolve(gateway.log, command)
        event = await gateway.inbox.prepare(command, key_id=gateway.key_id, task_id=member_id(batch_id, index))
    except InvalidInput as error:
        raise InvalidInput(field=f"tasks.{index}.{error.field}", problem=error.problem) from error
    return event.model_copy(update={"batch_id": batch_id})


def _accepted(batch_id: str, tasks: int, sequence: int) -> dict[str, Any]:
    links = {"self": f"/v1/batches/{batch_id}", "tasks": f"/v1/tasks?batch={batch_id}"}
    return {"batch_id": batch_id, "tasks": tasks, "sequence": sequence, "links": links}
