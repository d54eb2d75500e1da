"""The OpenAPI 3.1 document, made from the models that validate the requests and from the table of operations."""

from __future__ import annotations

import re
from functools import cache

import orjson
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

import bitinglip
from bitinglip import errors
from bitinglip.events.node import NodeWorker
from bitinglip.gateway import problems
from bitinglip.gateway.aliases import SetAlias
from bitinglip.gateway.analytics import Answer, Query
from bitinglip.gateway.analyticsoperations import REPORT, SAVED
from bitinglip.gateway.batches import BatchCancel
from bitinglip.gateway.bulk import Selection
from bitinglip.gateway.modeloperations import ALIAS, ASKED, AWAITED, FIT, HIT, MODEL, MODEL_DETAIL
from bitinglip.gateway.models import AskCheck, AskModel, AskNodes
from bitinglip.gateway.nodes import Labels, Prune
from bitinglip.gateway.operations import ACCEPTED, ARTIFACT, ENDING, NODE_STATUS, OPERATIONS
from bitinglip.gateway.projections import Rebuild
from bitinglip.gateway.queues import QueueChange, QueuePurge
from bitinglip.gateway.savedqueries import RunQuery, SaveQuery
from bitinglip.gateway.schedules import ScheduleShown
from bitinglip.gateway.schemas import (
    MOMENT,
    OPTIONAL,
    REFERENCE,
    TEXT,
    TIME,
    Operation,
    Schema,
    array_of,
    object_of,
    ref,
)
from bitinglip.gateway.uploadoperations import UPLOAD
from bitinglip.gateway.uploads import BeginUpload, CompleteUpload
from bitinglip.projections.rows import BatchRow, NodeRow, TaskRow, WorkerRow
from bitinglip.tasks.batches import CreateBatch
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.parameters import PARAMETERS, RESULTS
from bitinglip.tasks.schedules import CreateSchedule

TIMES: tuple[type[BaseModel], ...] = (CreateBatch, BatchCancel, CreateSchedule, Selection, ScheduleShown)
ABOUT_MODELS: tuple[type[BaseModel], ...] = (
    AskModel,
    AskNodes,
    AskCheck,
    SetAlias,
    Prune,
    BeginUpload,
    CompleteUpload,
)
BODIES: tuple[type[BaseModel], ...] = (
    SubmitTask,
    Query,
    Answer,
    SaveQuery,
    RunQuery,
    Labels,
    NodeWorker,
    QueueChange,
    QueuePurge,
    Rebuild,
    *ABOUT_MODELS,
    *TIMES,
)
MODELS = (*BODIES, *PARAMETERS.values(), *RESULTS.values())


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
        "operationId": _operation_id(operation),
        "summary": operation.summary,
        "responses": _answers(operation) | _refusals(operation),
    }
    if operation.notes:
        described["description"] = operation.notes
    if operation.parameters:
        described["parameters"] = list(operation.parameters)
    if operation.body:
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref(operation.body)}}}
    if operation.upload:
        described["requestBody"] = {"required": True, "content": {"*/*": {"schema": {}}}}
    return described | ({"security": []} if operation.open else {})


def _operation_id(operation: Operation) -> str:
    words = re.findall(r"\w+", operation.path)
    return "_".join([operation.method, *words])


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
    narrowed: Schema = {"allOf": [ref("Problem"), {"properties": {"type": {"enum": types}}}]}
    return {"description": ", ".join(types), "content": {problems.MEDIA_TYPE: {"schema": narrowed}}}


def _schemas() -> Schema:
    _, generated = models_json_schema([(model, "validation") for model in MODELS], ref_template=REFERENCE)
    schemas: Schema = generated["$defs"]
    base = schemas.pop("SubmitTask")
    for kind, model in PARAMETERS.items():
        schemas[_submit_name(kind)] = _submit_schema(base, kind, model)
    return schemas | {
        "SubmitTask": {
            "oneOf": [ref(_submit_name(kind)) for kind in PARAMETERS],
            "discriminator": {
                "propertyName": "kind",
                "mapping": {kind: ref(_submit_name(kind))["$ref"] for kind in PARAMETERS},
            },
        },
        "BatchTasks": array_of(ref("SubmitTask")),
        "Accepted": ACCEPTED,
        "Artifact": ARTIFACT,
        "Ending": ENDING,
        "Task": _task(),
        "Batch": _row(BatchRow),
        "Worker": _row(WorkerRow),
        "Node": _row(NodeRow),
        "NodeStatus": NODE_STATUS,
        "Model": MODEL,
        "ModelDetail": MODEL_DETAIL,
        "ModelAsked": ASKED,
        "ModelFit": FIT,
        "ModelFound": HIT,
        "Alias": ALIAS,
        "SavedQuery": SAVED,
        "Report": REPORT,
        "Upload": UPLOAD,
        "TaskPage": object_of(
            ("tasks", "next_cursor"), tasks=array_of(ref("Task")), next_cursor=OPTIONAL, as_of=MOMENT
        ),
        "Schema": object_of(
            tables=array_of(object_of(table=TEXT, comment=OPTIONAL)),
            columns=array_of(object_of(table=TEXT, column=TEXT, type=TEXT, comment=OPTIONAL)),
        ),
        "Event": object_of(
            ("specversion", "id", "type", "data"), specversion=TEXT, id=TEXT, source=TEXT, type=TEXT, subject=TEXT,
            time=TIME, dataschema=TEXT, correlationid=TEXT, causationid=TEXT, actorkey=TEXT,
            actoraddress=TEXT, requestid=TEXT, sequence=TEXT, data={"type": "object"},
        ),
        "Problem": object_of(
            ("type", "title", "status", "detail", "remedy"), type=TEXT, title=TEXT, status={"type": "integer"},
            detail=TEXT, code=TEXT, remedy=TEXT, request_id=TEXT, field=TEXT,
        ),
    }  # fmt: skip


def _task() -> Schema:
    """Return a task as it is answered; `waiting_for` is there while it waits for its model."""
    schema = _row(TaskRow)
    return schema | {"properties": schema["properties"] | {"waiting_for": AWAITED, "as_of": MOMENT}}


def _row(row: type[TaskRow | BatchRow | WorkerRow | NodeRow]) -> Schema:
    return TypeAdapter(row).json_schema(mode="serialization")


def _submit_name(kind: str) -> str:
    return "Submit" + "".join(part.capitalize() for part in kind.split("-"))


def _submit_schema(base: Schema, kind: str, model: type[BaseModel]) -> Schema:
    """Return the body for one kind: the command's own schema, with this kind's parameters."""
    own = {"kind": {"const": kind, "type": "string"}, "params": ref(model.__name__)}
    return base | {"title": _submit_name(kind), "properties": base["properties"] | own, "description": model.__doc__}
