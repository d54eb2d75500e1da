"""Lists of tasks, filtered and in pages."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json

METADATA = "metadata."
NAMES = ("state", "kind", "model", "lane", "submitted_after", "submitted_before", "limit", "cursor")
LIMIT, LIMIT_MOST = 50, 1000
CURSOR_MOST = 200


async def list_tasks(request: Request) -> Response:
    """Answer `GET /v1/tasks`: the newest first, a page at a time."""
    rows, next_cursor = await gateway_of(request).readmodel.queries.tasks(read_filter(request))
    return json({"tasks": rows, "next_cursor": next_cursor})


def read_filter(request: Request) -> TaskFilter:
    """Read the parameters of `GET /v1/tasks`."""
    return TaskFilter()
