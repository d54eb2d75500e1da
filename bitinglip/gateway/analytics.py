"""Analytics: a stranger's SQL over the read model, and its schema."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.gateway import answers, bodies, requests, values
from bitinglip.gateway.answers import FORMATS, Format
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.sandbox import Explain, Question


class Bounded(BaseModel):
    """How an answer is to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    timeout_s: float | None = Field(
        None, gt=0, description="Longest run, in seconds; at most `projections.query_timeout_s`."
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="Most rows in the answer; at most `projections.query_max_rows`, and in Arrow and CSV "
        "`projections.query_export_max_rows`.",
    )
    explain: Literal[True, False, "plan", "analyze"] = Field(
        False, description="Answer how it would be answered (`true`, `plan`), or was (`analyze`: it is run)."
    )
    format: Format | None = Field(None, description="Form of the answer; none: what `Accept` asks for, else JSON.")

    @property
    def plan(self) -> Explain | None:
        """Which plan is to be told; none: the answer is."""
        return "plan" if self.explain is True else self.explain or None


class Query(Bounded):
    """One read-only statement: the body of `POST /v1/query`."""

    sql: str = Field(min_length=1, max_length=100_000, description="One SELECT over the tables of `GET /v1/schema`.")
    params: values.Parameters = Field(
        default_factory=list[values.Parameter],
        max_length=1000,
        description="Values for `?` (a list) or `$name` (an object).",
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
    requests.only(request, ("format",))
    asked = await bodies.read(request, Query)
    question = Question(asked.sql, values.bound(asked.params), explain=asked.plan)
    return await answers.answer(request, question, asked.timeout_s, asked.max_rows, chosen_format(request, asked))


def chosen_format(request: Request, asked: Bounded) -> Format:
    """Return the form in which the caller wants the answer: as the address says, else the body, else `Accept`.

    Raises:
        InvalidInput: the address names none that there is.
    """
    named = requests.one(request, "format")
    if named is not None:
        return cast("Format", requests.choice("format", named, named, FORMATS))
    if asked.format is not None:
        return asked.format
    for form, media_type in FORMATS.items():
        if requests.wants(request, media_type):
            return form
    return "json"


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
