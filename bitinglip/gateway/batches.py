"""Batches: make, add to, close, cancel, list, look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Self, cast

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import BatchNotFound, InvalidInput, MalformedBody
from bitinglip.events.batch import BatchOpened
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway import admission, bulk, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.gateway.tasks import idempotency_key
from bitinglip.ids import is_ulid
from bitinglip.projections.query import TaskFilter
from bitinglip.tasks import media, privacy
from bitinglip.tasks.batches import (
    FIRST,
    TASKS_MOST,
    Batch,
    CreateBatch,
    Part,
    batch_id_for,
    command_of,
    digest_of,
    member_id,
    part_for,
)
from bitinglip.tasks.commands import SubmitTask, invalid_input

LIMIT, LIMIT_MOST = 50, 1000
LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})


async def create(request: Request) -> Response:
    """Answer `POST /v1/batches`: all of its tasks are taken, or none."""
    gateway = gateway_of(request)
    requests.only(request)
    key = idempotency_key(request)
    asked = CreateBatch.from_json(await requests.read_json(request, gateway.settings.gateway.max_body_bytes))
    commands = asked.commands()
    batch_id = batch_id_for(gateway.key_id, key) if key is not None else gateway.log.ids()
    digest = await _digest(gateway, batch_id, commands, asked.sha256())
    part = Part(FIRST, await _members(gateway, commands, batch_id, FIRST), digest, key)
    opened = BatchOpened(
        batch_id=batch_id,
        name=asked.name,
        metadata=asked.metadata,
        key_id=gateway.key_id,
        request_sha256=part.request_sha256,
    )
    batch, created = await gateway.batches.open(opened, key)
    batch, _ = await _extend(gateway, batch, part, request)
    if not asked.open:
        batch, _ = await gateway.batches.close(batch)
    headers = {"Location": f"/v1/batches/{batch_id}"} | _replayed(created)
    return json(_shown(gateway, batch), 202, headers)


async def add(request: Request) -> Response:
    """Answer `POST /v1/batches/{batch_id}/tasks`: all of the request's tasks are added to an open batch, or none."""
    gateway, batch_id = _asked(request)
    key = idempotency_key(request)
    commands = await _read_commands(request, gateway.settings.gateway.max_body_bytes)
    batch = await gateway.batches.read(batch_id)
    name = part_for(batch_id, f"{gateway.key_id or ''}\0{key}") if key is not None else gateway.log.ids()
    digest = await _digest(gateway, batch_id, commands, digest_of(commands))
    part = Part(name, await _members(gateway, commands, batch_id, name), digest, key)
    batch, created = await _extend(gateway, batch, part, request)
    return json({"added": len(commands)} | _shown(gateway, batch), 202, _replayed(created))


async def close(request: Request) -> Response:
    """Answer `POST /v1/batches/{batch_id}:close`; one that is closed stays so."""
    gateway, batch_id = _asked(request)
    batch, _ = await gateway.batches.close(await gateway.batches.read(batch_id))
    return json(_shown(gateway, batch))


class BatchCancel(BaseModel):
    """Which page, and why: the body of `POST /v1/batches/{batch_id}:cancel`, which may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dry_run: bool = Field(default=False, description="Only say which tasks are meant, and close nothing.")
    reason: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Why; kept with the tasks.")
    limit: int = Field(default=1000, ge=1, le=bulk.PAGE_MOST, description="Most tasks that this request is about.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the request before.")

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body.

        Raises:
            MalformedBody: it is not JSON in UTF-8.
            InvalidInput: a field is refused.
        """
        try:
            return cls.model_validate(_parsed(body, "the body"))
        except ValidationError as error:
            raise invalid_input(error) from error


async def cancel(request: Request) -> Response:
    """Answer `POST /v1/batches/{batch_id}:cancel`: close it, and cancel a page of its tasks that have not ended."""
    gateway, batch_id = _asked(request)
    asked = BatchCancel()
    if requests.header(request, b"content-type"):
        asked = BatchCancel.from_json(await requests.read_json(request, gateway.settings.gateway.max_body_bytes))
    batch = await gateway.batches.read(batch_id)
    if not asked.dry_run:
        batch, _ = await gateway.batches.close(batch)
        gateway.recent.note(batch_id, batch.sequence)
    chosen = TaskFilter(states=tuple(sorted(bulk.UNENDED)), batch_id=batch_id, limit=asked.limit, cursor=asked.cursor)
    return json(await bulk.cancel_page(gateway, chosen, asked.reason, dry_run=asked.dry_run))


async def list_batches(request: Request) -> Response:
    """Answer `GET /v1/batches`: the newest first, a page at a time."""
    requests.only(request, ("limit", "cursor"))
    limit = requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST)
    cursor = requests.one(request, "cursor")
    rows, next_cursor = await gateway_of(request).readmodel.queries.batches(limit=limit, cursor=cursor)
    return json({"batches": rows, "next_cursor": next_cursor})


async def get_batch(request: Request) -> Response:
    """Answer `GET /v1/batches/{batch_id}`."""
    gateway, batch_id = _asked(request)
    sequence = gateway.recent.of(batch_id) or (await gateway.batches.read(batch_id)).sequence
    await gateway.readmodel.wait(TASKS, sequence)
    rows, _ = await gateway.readmodel.queries.batches(batch_id=batch_id, limit=1)
    if not rows:
        raise BatchNotFound(batch_id=batch_id)
    return json(rows[0])


def batch_id_of(request: Request) -> str:
    """Return the batch id in the path.

    Raises:
        InvalidInput: it is not an id.
    """
    batch_id = request.path_params["batch_id"]
    if not is_ulid(batch_id):
        raise InvalidInput(field="batch_id", problem="must be a ULID: 26 characters, as in 01JZ0000000000000000000000")
    return batch_id


def _asked(request: Request) -> tuple[Gateway, str]:
    requests.only(request)
    return gateway_of(request), batch_id_of(request)


async def _read_commands(request: Request, limit_bytes: int) -> list[SubmitTask]:
    """Read a JSON list of tasks, or JSON lines, each a task."""
    commands: list[SubmitTask] = []
    async for document in _documents(request, limit_bytes):
        if len(commands) == TASKS_MOST:
            raise InvalidInput(field="tasks", problem=f"has more than {TASKS_MOST}; add the others by another request")
        commands.append(command_of(document, len(commands)))
    if not commands:
        raise InvalidInput(field="tasks", problem="there is none")
    return commands


async def _documents(request: Request, limit_bytes: int) -> AsyncIterator[Any]:
    if requests.header(request, b"content-type").partition(";")[0].strip().lower() not in LINES:
        body: Any = _parsed(await requests.read_json(request, limit_bytes), "the body")
        if not isinstance(body, list):
            raise InvalidInput(field="body", problem="must be a list of tasks")
        for document in cast("list[Any]", body):
            yield document
        return
    number = 0
    async for line in requests.read_lines(request, limit_bytes):
        number += 1
        if line.strip():
            yield _parsed(line, f"line {number}")


def _parsed(text: bytes, where: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(problem=f"{where}: {error}") from error


async def _members(gateway: Gateway, commands: list[SubmitTask], batch_id: str, part: str) -> list[TaskSubmitted]:
    """Return what the tasks' first events will be, when each of them was found to be acceptable now."""
    members = [await _prepared(gateway, each, batch_id, part, index) for index, each in enumerate(commands)]
    await gateway.let_in(members)
    return members


async def _extend(gateway: Gateway, batch: Batch, part: Part, request: Request) -> tuple[Batch, bool]:
    batch, created = await gateway.batches.extend(batch, part, request.scope["request_id"])
    if not created:
        gateway.pressure.take_back(part.members)
    return batch, created


async def _prepared(gateway: Gateway, command: SubmitTask, batch_id: str, part: str, index: int) -> TaskSubmitted:
    await admission.admit(gateway, command.model, command.kind)
    task_id = member_id(batch_id, part, index)
    try:
        command = await media.resolve(gateway.log, command, keep_data=gateway.inbox.is_private(command.private))
        event = await gateway.inbox.prepare(command, key_id=gateway.key_id, task_id=task_id)
    except InvalidInput as error:
        raise InvalidInput(field=f"tasks.{index}.{error.field}", problem=error.problem) from error
    return event.model_copy(update={"batch_id": batch_id})


async def _digest(gateway: Gateway, batch_id: str, commands: list[SubmitTask], plain: str) -> str:
    """Return the digest of a request; if some of it is private, one that only the batch's own key leads to."""
    if not any(gateway.inbox.is_private(command.private) for command in commands):
        return plain
    return await privacy.request_digest(gateway.log.connection, batch_id, plain.encode())


def _replayed(created: bool) -> dict[str, str]:
    return {} if created else {"Idempotency-Replayed": "true"}


def _shown(gateway: Gateway, batch: Batch) -> dict[str, Any]:
    gateway.recent.note(batch.id, batch.sequence)
    return {
        "batch_id": batch.id,
        "state": "completed" if batch.completed else "closed" if batch.closed else "open",
        "tasks": batch.tasks,
        "sequence": batch.sequence,
        "links": {"self": f"/v1/batches/{batch.id}", "tasks": f"/v1/tasks?batch={batch.id}"},
    }
