"""The OpenAPI 3.1 document, made from the models that validate the requests and from the table below."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import orjson
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

import bitinglip
from bitinglip import errors
from bitinglip.errors import BitingLipError
from bitinglip.events.task import LANES
from bitinglip.gateway import problems
from bitinglip.gateway.analytics import Answer, Query
from bitinglip.gateway.listing import STATES
from bitinglip.ids import ULID_PATTERN
from bitinglip.projections.rows import ModelRow, TaskRow, WorkerRow
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.parameters import PARAMETERS, RESULTS

Schema = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"
MODELS: tuple[type[BaseModel], ...] = (SubmitTask, Query, Answer, *PARAMETERS.values(), *RESULTS.values())


def _ref(name: str) -> Schema:
    return {"$ref": REFERENCE.format(model=name)}


def _object(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def _array(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _query(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema or TEXT}


def _header(name: str, description: str, schema: Schema | None = None) -> Schema:
    return {"name": name, "in": "header", "description": description, "schema": schema or TEXT}


def _path(name: str, description: str, pattern: str) -> Schema:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
STATE: Schema = {"type": "string", "enum": list(STATES)}
LANE: Schema = {"type": "string", "enum": list(LANES)}
KIND: Schema = {"type": "string", "enum": list(PARAMETERS)}

TASK_ID = _path("task_id", "The task's id, a ULID.", ULID_PATTERN)
DIGEST = _path("digest", "SHA-256 of the bytes, in hex.", "[0-9a-f]{64}")
AFTER = _query("after", "Only events after this sequence.", WHOLE)
LAST_EVENT_ID = _header("Last-Event-ID", "As `after`; sent by an EventSource that connects again.", WHOLE)
PREFER = _header("Prefer", "`wait=n`: wait up to n seconds for the task's end.")
KEY = _header("Idempotency-Key", "A repeat with the same key is answered with the first one's task.")

LISTING = (
    _query("state", "States, repeated or with commas between them.", _array(STATE)),
    _query("kind", "Kind of task.", KIND),
    _query("model", "Model reference."),
    _query("lane", "Lane.", LANE),
    _query("metadata.<key>", "Value that the task's metadata has under the key."),
    _query("submitted_after", "Submitted after this time.", TIME),
    _query("submitted_before", "Submitted before this time.", TIME),
    _query("limit", "Most tasks in the answer; 50 if not given.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    _query("cursor", "`next_cursor` of the page before."),
)
WATCHING = (
    _query("stream", "Which stream; `tasks` if not given.", {"type": "string", "enum": ["tasks", "workers", "models"]}),
    _query("types", "Event types, repeated or with commas between them.", _array(TEXT)),
    _query("kind", "Only events about this kind of task or model.", KIND),
    _query("task_id", "Only events of this task."),
    _query("follow", "`false` ends the stream at the last event of now.", FLAG),
    AFTER,
    _query("from", "Where to start without `after`: `end` if not given.", {"type": "string", "enum": ["start", "end"]}),
    LAST_EVENT_ID,
)
LINKS = _object(self=TEXT, events=TEXT)
ACCEPTED = _object(task_id=TEXT, state=STATE, sequence=WHOLE, links=LINKS)
ENDING = _object(task_id=TEXT, state=STATE, cancel_requested=FLAG, links=LINKS)


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, as the document tells it."""

    method: str
    path: str
    summary: str
    answers: dict[int, Schema]
    """Schema of the JSON answer by status; an empty one: no body that a schema describes."""
    refusals: tuple[type[BitingLipError], ...] = ()
    parameters: tuple[Schema, ...] = ()
    body: str | None = None
    media_types: tuple[str, ...] = ("application/json",)
    open: bool = False
    """Whether it needs no key."""
    notes: str = field(default="")


BODY = (errors.MalformedBody, errors.UnsupportedMediaType, errors.PayloadTooLarge, errors.InvalidInput)
SSE = ("text/event-stream", "application/json")

OPERATIONS = (
    Operation(
        "post", "/v1/tasks", "Submit a task.", {202: _ref("Accepted"), 200: _ref("Task")},
        (*BODY, errors.UnknownModel, errors.IdempotencyMismatch, errors.NoServer, errors.StreamFull),
        (KEY, PREFER), body="SubmitTask",
        notes="202: the task is in the log and will not be lost. 200: it ended within `Prefer: wait=n`. "
        "With `Accept: text/event-stream` the answer is the task's event stream.",
    ),
    Operation(
        "get", "/v1/tasks", "List tasks, the newest first.", {200: _ref("TaskPage")}, (errors.InvalidInput,), LISTING
    ),
    Operation(
        "get", "/v1/tasks/{task_id}", "Look at a task.", {200: _ref("Task")},
        (errors.TaskNotFound, errors.InvalidInput, errors.ProjectionBehind, errors.NoServer), (TASK_ID,),
    ),
    Operation(
        "delete", "/v1/tasks/{task_id}", "Cancel a task.", {200: _ref("Ending"), 202: _ref("Ending")},
        (errors.TaskNotFound, errors.IllegalTransition, errors.InvalidInput, errors.NoServer),
        (TASK_ID, _query("reason", "Why; kept with the task.", {"type": "string", "maxLength": 512})),
        notes="200: it has ended. 202: its worker was asked to stop.",
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/events", "Watch a task, from its first event to its end.",
        {200: _array(_ref("Event")), 204: {}}, (errors.TaskNotFound, errors.InvalidInput, errors.NoServer),
        (TASK_ID, AFTER, LAST_EVENT_ID, _query("format", "`json`: the history so far.", {"enum": ["sse", "json"]})),
        media_types=SSE, notes="204: the task ended before or at `Last-Event-ID`, so that an EventSource stops.",
    ),
    Operation(
        "get", "/v1/events", "Watch a whole stream.", {200: {}}, (errors.InvalidInput, errors.NoServer), WATCHING,
        media_types=("text/event-stream",),
    ),
    Operation(
        "get", "/v1/artifacts/{digest}", "Fetch an artifact.", {200: {}, 304: {}},
        (errors.ArtifactNotFound, errors.NoServer), (DIGEST, _header("If-None-Match", "ETag of a copy at hand.")),
        media_types=("application/octet-stream",),
    ),
    Operation("get", "/v1/workers", "List the workers.", {200: _object(workers=_array(_ref("Worker")))}),
    Operation("get", "/v1/models", "List the registered models.", {200: _object(models=_array(_ref("Model")))}),
    Operation(
        "get", "/v1/queues", "How many tasks wait or run, by lane and model.",
        {200: _object(queues=_array(_object(lane=LANE, model=TEXT, depth=WHOLE)))}, (errors.NoServer,),
    ),
    Operation(
        "post", "/v1/query", "Ask the read model in SQL.", {200: _ref("Answer")},
        (*BODY, errors.QueryRefused, errors.QueryTimeout), body="Query",
    ),
    Operation("get", "/v1/schema", "The tables that a query can read.", {200: {"type": "object"}}),
    Operation(
        "post", "/v1/projections/rebuild", "Make the read model anew from the log.",
        {200: _object(rebuilt=FLAG, elapsed_ms={"type": "number"})}, (errors.NoServer,),
    ),
    Operation("get", "/healthz", "Whether the process lives.", {200: _object(status=TEXT)}, open=True),
    Operation(
        "get", "/readyz", "Whether it can serve.", {200: _object(status=TEXT, log=TEXT, read_model=TEXT)},
        (errors.NoServer, errors.ProjectionBehind), open=True,
    ),
    Operation("get", "/metrics", "Metrics for Prometheus.", {200: {}}, media_types=("text/plain",)),
    Operation("get", "/openapi.json", "This document.", {200: {"type": "object"}}),
)  # fmt: skip


async def openapi(_: Request) -> Response:
    """Answer `GET /openapi.json`."""
    return Response(encoded(), media_type="application/json")


@cache
def encoded() -> bytes:
    """Return the document as bytes; made once."""
    return orjson.dumps(document())


def document() -> Schema:
    """Return the document."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "BitingLip",
            "version": bitinglip.__version__,
            "summary": "An event-sourced inference cluster.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": f"{operation.method}_{operation.path.strip('/').replace('/', '_').replace('.', '_')}".translate(
            {ord("{"): None, ord("}"): None}
        ),
        "summary": operation.summary,
        "responses": _answers(operation) | _refusals(operation),
    }
    if operation.notes:
        described["description"] = operation.notes
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    return described | ({"security": []} if operation.open else {})


def _answers(operation: Operation) -> Schema:
    return {str(status): _answer(operation, status, schema) for status, schema in operation.answers.items()}


def _answer(operation: Operation, status: int, schema: Schema) -> Schema:
    if status in {204, 304}:
        return {"description": "Nothing new."}
    content = {name: {"schema": schema if name.endswith("json") else TEXT} for name in operation.media_types}
    return {"description": operation.summary, "content": content}


def _refusals(operation: Operation) -> Schema:
    always = (
        (errors.InternalError,) if operation.open else (errors.KeyMissing, errors.HostRefused, errors.InternalError)
    )
    by_status: dict[int, list[str]] = {}
    for error in (*operation.refusals, *always):
        by_status.setdefault(error.status, []).append(problems.problem_type(error))
    return {str(status): _problem(types) for status, types in sorted(by_status.items())}


def _problem(types: list[str]) -> Schema:
    narrowed: Schema = {"allOf": [_ref("Problem"), {"properties": {"type": {"enum": types}}}]}
    return {"description": ", ".join(types), "content": {problems.MEDIA_TYPE: {"schema": narrowed}}}


def _schemas() -> Schema:
    _, generated = models_json_schema([(model, "validation") for model in MODELS], ref_template=REFERENCE)
    schemas: Schema = generated["$defs"]
    base = schemas.pop("SubmitTask")
    for kind, model in PARAMETERS.items():
        schemas[_submit_name(kind)] = _submit_schema(base, kind, model)
    return schemas | {
        "SubmitTask": {
            "oneOf": [_ref(_submit_name(kind)) for kind in PARAMETERS],
            "discriminator": {
                "propertyName": "kind",
                "mapping": {kind: _ref(_submit_name(kind))["$ref"] for kind in PARAMETERS},
            },
        },
        "Accepted": ACCEPTED,
        "Ending": ENDING,
        "Task": _row(TaskRow),
        "Worker": _row(WorkerRow),
        "Model": _row(ModelRow),
        "TaskPage": _object(tasks=_array(_ref("Task")), next_cursor={"type": ["string", "null"]}),
        "Event": _object(
            ("specversion", "id", "type", "data"), specversion=TEXT, id=TEXT, source=TEXT, type=TEXT, subject=TEXT,
            time=TIME, dataschema=TEXT, correlationid=TEXT, causationid=TEXT, sequence=TEXT, data={"type": "object"},
        ),
        "Problem": _object(
            ("type", "title", "status", "detail", "remedy"), type=TEXT, title=TEXT, status={"type": "integer"},
            detail=TEXT, code=TEXT, remedy=TEXT, request_id=TEXT, field=TEXT,
        ),
    }  # fmt: skip


def _row(row: type[TaskRow | WorkerRow | ModelRow]) -> Schema:
    return TypeAdapter(row).json_schema(mode="serialization")


def _submit_name(kind: str) -> str:
    return "Submit" + "".join(part.capitalize() for part in kind.split("-"))


def _submit_schema(base: Schema, kind: str, model: type[BaseModel]) -> Schema:
    """Return the body for one kind: the command's own schema, with this kind's parameters."""
    own = {"kind": {"const": kind, "type": "string"}, "params": _ref(model.__name__)}
    return base | {"title": _submit_name(kind), "properties": base["properties"] | own, "description": model.__doc__}
