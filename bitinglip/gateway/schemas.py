"""Writing OpenAPI: schemas, parameters, and what one operation of the document is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bitinglip import errors
from bitinglip.errors import BitingLipError
from bitinglip.events.task import LANES
from bitinglip.gateway.listing import STATES
from bitinglip.tasks.parameters import PARAMETERS

Schema = dict[str, Any]
REFERENCE = "#/components/schemas/{model}"


def ref(name: str) -> Schema:
    """Return a reference to a schema of the document by its name."""
    return {"$ref": REFERENCE.format(model=name)}


def object_of(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object; all of its properties are required unless `required` names them."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def array_of(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def in_query(name: str, description: str, schema: Schema | None = None) -> Schema:
    """Describe a query parameter; a text unless a schema is given."""
    return {"name": name, "in": "query", "description": description, "schema": schema or TEXT}


def in_header(name: str, description: str, schema: Schema | None = None) -> Schema:
    """Describe a request header; a text unless a schema is given."""
    return {"name": name, "in": "header", "description": description, "schema": schema or TEXT}


def in_path(name: str, description: str, pattern: str) -> Schema:
    """Describe a part of the path."""
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


TEXT: Schema = {"type": "string"}
OPTIONAL: Schema = {"type": ["string", "null"]}
WHOLE: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
STATE: Schema = {"type": "string", "enum": list(STATES)}
LANE: Schema = {"type": "string", "enum": list(LANES)}
KIND: Schema = {"type": "string", "enum": list(PARAMETERS)}


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
    upload: bool = False
    """Whether the body is taken as it is, whatever it may be."""
    media_types: tuple[str, ...] = ("application/json",)
    open: bool = False
    """Whether it needs no key."""
    notes: str = ""


MOMENT: Schema = object_of(time=TIME, sequence=WHOLE)
"""Of which moment an answer is."""
AS_OF = in_query(
    "as_of",
    "A moment of the past that the answer is to be of: a time as 2026-01-31T12:00:00Z, `10 min ago`, or the sequence "
    "of an event in TASKS. The answer's `as_of` says which moment it is.",
)
ON_PAST = (
    errors.InvalidInput, errors.NotAMoment, errors.MomentToCome, errors.MomentBeforeLog, errors.PastTimeout,
    errors.PastTooLarge, errors.ProjectionBehind, errors.NoServer,
)  # fmt: skip
"""How a question about a moment may end."""


def listed(name: str, items: Schema) -> Schema:
    """Return the schema of an answer that lists things, of now or of a moment."""
    return object_of((name,), **{name: array_of(items), "as_of": MOMENT})


BODY = (errors.MalformedBody, errors.UnsupportedMediaType, errors.PayloadTooLarge, errors.InvalidInput)
COMMANDED = (errors.InvalidInput, errors.CommandRefused, errors.NodeSilent, errors.NoServer)
"""How a command to a node may end."""
