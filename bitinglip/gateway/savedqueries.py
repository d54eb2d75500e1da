"""Saved queries: SQL with a name, kept in the log, so that every gateway has it."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import Conflict, InvalidInput, QueryNotFound
from bitinglip.events import subjects
from bitinglip.events.query import QueryDeleted, QueryEvent, QueryParameter, QuerySaved
from bitinglip.events.streams import LEDGER
from bitinglip.gateway import analytics, answers, bodies, requests, values
from bitinglip.gateway.analytics import Bounded
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.rows import SavedQueryRow
from bitinglip.projections.sandbox import Question

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
PARAMETERS_MOST = 100
TRIES = 5
"""Times that a change is tried whose query others change as well."""


class SaveQuery(BaseModel):
    """A query to be saved: the body of `PUT /v1/queries/{name}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sql: str = Field(min_length=1, max_length=100_000, description="One SELECT over the tables of `GET /v1/schema`.")
    description: str | None = Field(None, max_length=1000, description="What it answers.")
    parameters: dict[str, QueryParameter] = Field(
        default_factory=dict[str, QueryParameter],
        max_length=PARAMETERS_MOST,
        description="The parameters that it takes, `$name` in the SQL, by name.",
    )


class RunQuery(Bounded):
    """What a saved query is to be run with: the body of `POST /v1/queries/{name}/run`."""

    params: dict[str, values.Scalar | list[values.Scalar]] = Field(
        default_factory=dict[str, values.Scalar | list[values.Scalar]],
        max_length=PARAMETERS_MOST,
        description="Values by name; what is left out has its default.",
    )


async def list_queries(request: Request) -> Response:
    """Answer `GET /v1/queries`."""
    requests.only(request)
    return json({"queries": [shown(row) for row in await gateway_of(request).readmodel.queries.saved_queries()]})


async def get_query(request: Request) -> Response:
    """Answer `GET /v1/queries/{name}`."""
    requests.only(request)
    return json(shown(await _query(request)))


async def save(request: Request) -> Response:
    """Answer `PUT /v1/queries/{name}`: the SQL is looked at when it is run, the defaults now."""
    requests.only(request)
    gateway, name = gateway_of(request), _checked_name(request)
    asked = await bodies.read(request, SaveQuery)
    for parameter, declared in asked.parameters.items():
        values.read(parameter, declared.type, declared.default)
    await _tell(gateway, QuerySaved(name=name, by=gateway.key_id, **asked.model_dump()))
    return json(shown(await _query(request)))


async def delete(request: Request) -> Response:
    """Answer `DELETE /v1/queries/{name}`."""
    requests.only(request)
    gateway, found = gateway_of(request), await _query(request)
    await _tell(gateway, QueryDeleted(name=found.name, by=gateway.key_id))
    return json(shown(found))


async def run(request: Request) -> Response:
    """Answer `POST /v1/queries/{name}/run`; the body may be left out."""
    requests.only(request, ("format",))
    asked, found = await bodies.read_if_given(request, RunQuery), await _query(request)
    question = Question(found.sql, _bound(found, asked.params), explain=asked.plan)
    form = analytics.chosen_format(request, asked)
    return await answers.answer(request, question, asked.timeout_s, asked.max_rows, form)


def shown(row: SavedQueryRow) -> dict[str, Any]:
    """Return a saved query as it is answered."""
    return {
        "name": row.name,
        "sql": row.sql,
        "description": row.description,
        "parameters": row.parameters,
        "saved_at": row.saved_at,
        "by": row.saved_by,
    }


async def _query(request: Request) -> SavedQueryRow:
    name = request.path_params["name"]
    found = await gateway_of(request).readmodel.queries.saved_queries(name)
    if not found:
        raise QueryNotFound(name=name[:200])
    return found[0]


def _checked_name(request: Request) -> str:
    name: str = request.path_params["name"]
    if NAME.fullmatch(name) is None:
        raise InvalidInput(field="name", problem="must be up to 63 of a-z, 0-9, - and _, the first none of these two")
    return name


def _bound(query: SavedQueryRow, given: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a query's parameters.

    Raises:
        InvalidInput: one is missing, not declared or not of its type; the error names it.
    """
    declared = {name: QueryParameter.model_validate(each) for name, each in query.parameters.items()}
    if unknown := sorted(given.keys() - declared.keys()):
        raise InvalidInput(
            field=f"params.{unknown[0][:100]}", problem=f"is no parameter of it; it has {', '.join(declared) or 'none'}"
        )
    for name, each in declared.items():
        if each.required and given.get(name) is None:
            raise InvalidInput(field=f"params.{name}", problem="must be given")
    return {name: values.read(name, each.type, given.get(name, each.default)) for name, each in declared.items()}


async def _tell(gateway: Gateway, event: QueryEvent) -> None:
    """Put a fact about a query into the log; when this returns, this gateway knows of it.

    Raises:
        Conflict: others change it all the time.
        NoServer, StreamFull: the log does not take it now.
        ProjectionBehind: it is in the log, and this gateway is slow to hear of it.
    """
    for tried in range(TRIES):
        last = await gateway.log.read_last(LEDGER, subjects.query_events(event.name))
        try:
            sequence = await gateway.log.append(gateway.log.query_append(event, last.sequence if last else 0))
        except Conflict:
            if tried == TRIES - 1:
                raise
        else:
            await gateway.readmodel.wait(LEDGER, sequence)
            return
