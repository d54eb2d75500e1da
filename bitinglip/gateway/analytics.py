"""Analytics: a stranger's SQL over the read model, and its schema."""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import MalformedBody
from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json
from bitinglip.tasks.commands import invalid_input

Parameter = str | int | float | bool | None


class Query(BaseModel):
    """One read-only statement: the body of `POST /v1/query`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sql: str = Field(min_length=1, max_length=100_000, description="One SELECT over the tables of `GET /v1/schema`.")
    params: list[Parameter] | dict[str, Parameter] = Field(
        default_factory=list[Parameter], max_length=1000, description="Values for `?` (a list) or `$name` (an object)."
    )
    timeout_s: float | None = Field(
        None, gt=0, description="Longest run, in seconds; at most `projections.query_timeout_s`."
    )
    max_rows: int | None = Field(
        None, ge=1, description="Most rows in the answer; at most `projections.query_max_rows`."
    )


class Answer(BaseModel):
    """What `POST /v1/query` answers."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    """Whether there were more rows than the answer may have."""
    elapsed_ms: float


async def query(request: Request) -> Response:
    """Answer `POST /v1/query`."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = read_query(await requests.read_json(request, gateway.settings.gateway.max_body_bytes))
    limits = gateway.settings.projections
    timeout_s = min(asked.timeout_s or limits.query_timeout_s, limits.query_timeout_s)
    max_rows = min(asked.max_rows or limits.query_max_rows, limits.query_max_rows)
    started = time.perf_counter()
    table = await gateway.readmodel.sandbox.run(asked.sql, asked.params, timeout_s, max_rows)
    elapsed_ms = round((time.perf_counter() - started) * 1000, 3)
    return json({"columns": table.columns, "rows": table.rows, "truncated": table.truncated, "elapsed_ms": elapsed_ms})


def read_query(body: bytes) -> Query:
    """Read the body of a query.

    Raises:
        MalformedBody: it is not JSON in UTF-8.
        InvalidInput: a field is refused; the error names it.
    """
    try:
        return Query.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise MalformedBody(problem=error.errors()[0]["msg"]) from error
        raise invalid_input(error) from error


async def schema(request: Request) -> Response:
    """Answer `GET /v1/schema`: the tables that a query can read, and their columns."""
    requests.only(request)
    tables = await gateway_of(request).readmodel.schema()
    columns = [
        {"table": table.name, "column": column.name, "type": column.type, "comment": column.comment}
        for table in tables
        for column in table.columns
    ]
    return json({"tables": [{"table": table.name, "comment": table.comment} for table in tables], "columns": columns})
