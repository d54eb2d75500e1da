"""A task's parameters and its result, in its events or, when they are large, as artifacts."""

from __future__ import annotations

from typing import Any

import orjson

from bitinglip.events import artifacts
from bitinglip.events.connection import Connection
from bitinglip.events.task import ArtifactRef
from bitinglip.tasks.state import Task


async def read_params(connection: Connection, task: Task) -> dict[str, Any]:
    """Return what a task runs with.

    Raises:
        ArtifactNotFound, ArtifactExpired: it is there no more.
    """
    if task.params_ref is None:
        return task.params or {}
    body, _ = await artifacts.get(connection, task.params_ref.sha256)
    return orjson.loads(body)


async def store_result(
    connection: Connection, result: dict[str, Any], inline_most: int
) -> tuple[dict[str, Any] | None, ArtifactRef | None]:
    """Return a result as it is if it has at most so many bytes, and else where it is now."""
    body = orjson.dumps(result)
    if len(body) <= inline_most:
        return result, None
    return None, await artifacts.put(connection, body, "application/json")
