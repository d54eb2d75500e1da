"""Lists of tasks, filtered and in pages."""

from __future__ import annotations

from typing import get_args

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput
from bitinglip.events.task import LANES, FailureKind
from bitinglip.gateway import past, requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.pastviews import told
from bitinglip.gateway.responses import json
from bitinglip.projections.query import TaskFilter
from bitinglip.tasks.parameters import KINDS
from bitinglip.tasks.state import State

STATES: tuple[str, ...] = get_args(State)
FAILURES: tuple[str, ...] = get_args(FailureKind)
DEAD_NAMES = ("kind", "model", "failure", "after", "before", "limit", "cursor")
METADATA = "metadata."
NAMES = ("state", "kind", "model", "lane", "batch", "submitted_after", "submitted_before", "limit", "cursor")
LIMIT, LIMIT_MOST = 50, 1000


async def list_tasks(request: Request) -> Response:
    """Answer `GET /v1/tasks`: the newest first, a page at a time."""
    chosen = read_filter(request)
    if (moment := await past.moment_of(request)) is not None:
        rows, next_cursor = await past.at(request, moment, lambda state: state.tasks(chosen))
        return json({"tasks": rows, "next_cursor": next_cursor, past.AS_OF: told(moment)})
    rows, next_cursor = await gateway_of(request).readmodel.queries.tasks(chosen)
    return json({"tasks": rows, "next_cursor": next_cursor})


async def dead_letters(request: Request) -> Response:
    """Answer `GET /v1/dead-letters`: the newest submission first, a page at a time."""
    requests.only(request, DEAD_NAMES)
    chosen = TaskFilter(
        states=("dead_lettered",),
        kind=_known(request, "kind", KINDS),
        model=requests.one(request, "model"),
        failure=_known(request, "failure", FAILURES),
        after=requests.moment("after", requests.one(request, "after")),
        before=requests.moment("before", requests.one(request, "before")),
        limit=requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST),
        cursor=requests.one(request, "cursor"),
    )
    rows, next_cursor = await gateway_of(request).readmodel.queries.tasks(chosen)
    return json({"tasks": rows, "next_cursor": next_cursor})


def read_filter(request: Request) -> TaskFilter:
    """Read the parameters of `GET /v1/tasks`.

    Raises:
        InvalidInput: it names the parameter.
    """
    requests.only(request, (*NAMES, past.AS_OF), METADATA)
    states = tuple(requests.choice("state", state, state, STATES) for state in requests.words(request, "state"))
    return TaskFilter(
        states=states,
        kind=_known(request, "kind", KINDS),
        model=requests.one(request, "model"),
        lane=_known(request, "lane", LANES),
        batch_id=requests.one(request, "batch"),
        metadata=_metadata(request),
        submitted_after=requests.moment("submitted_after", requests.one(request, "submitted_after")),
        submitted_before=requests.moment("submitted_before", requests.one(request, "submitted_before")),
        limit=requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST),
        cursor=requests.one(request, "cursor"),
    )


def _known(request: Request, name: str, among: tuple[str, ...]) -> str | None:
    value = requests.one(request, name)
    return None if value is None else requests.choice(name, value, value, among)


def _metadata(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in request.query_params:
        if name.startswith(METADATA):
            if name == METADATA:
                raise InvalidInput(field=name, problem="names no key; write metadata.<key>=<value>")
            found[name.removeprefix(METADATA)] = requests.one(request, name) or ""
    return found
