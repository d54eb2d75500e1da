"""Facts about saved queries: SQL that has a name, with the parameters that it takes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from bitinglip.events.registry import Event, event

ParameterType = Literal["text", "integer", "number", "boolean", "date", "time", "texts", "integers"]


class QueryParameter(BaseModel):
    """A parameter that a saved query takes, `$name` in its SQL."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: ParameterType = "text"
    """`time`: with its zone; `texts`, `integers`: a list."""
    default: Any = None
    """Its value if none is given."""
    required: bool = False
    """Whether there is no default."""
    description: str | None = None


class QueryEvent(Event):
    """Base of the facts about one saved query."""

    name: str


@event
class QuerySaved(QueryEvent):
    """A query was given a name, or one of that name was changed."""

    type = "query.saved"
    example = {
        "name": "slow-tasks",
        "sql": "select task_id, run_ms from tasks where run_ms > $least_ms order by run_ms desc",
        "description": "Tasks that took long.",
        "parameters": {"least_ms": {"type": "number", "default": 10_000, "required": False, "description": None}},
        "by": None,
    }

    sql: str
    description: str | None = None
    parameters: dict[str, QueryParameter] = {}
    """By name."""
    by: str | None = None
    """API key that saved it."""


@event
class QueryDeleted(QueryEvent):
    """The name stands for no query any more."""

    type = "query.deleted"
    example = {"name": "slow-tasks", "by": None}

    by: str | None = None
