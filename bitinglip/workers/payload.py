"""A task's parameters and its result, in its events or, when they are large or private, as artifacts.

What a private task is told and tells meanwhile is sealed with its key; why an attempt of it failed is said by its kind.
"""

from __future__ import annotations

import base64
from typing import Any

import orjson

from bitinglip.events import artifacts, sealing
from bitinglip.events.connection import Connection
from bitinglip.events.keys import read_key
from bitinglip.events.task import ArtifactRef, Failure
from bitinglip.tasks.privacy import JSON, RESULT
from bitinglip.workers.attempt import Attempt
from bitinglip.workers.engine import JobProgressed

TICK = "tick"
UNTOLD = {
    "bad_input": "The input was refused",
    "out_of_memory": "The device has not enough memory",
    "load_failed": "The model could not be loaded",
    "engine_crashed": "The engine process ended",
    "engine_error": "The engine failed",
    "timed_out": "The attempt ran too long",
    "worker_stopped": "The worker was stopped",
}


async def read_params(connection: Connection, attempt: Attempt) -> dict[str, Any]:
    """Return what a task runs with; the attempt has the key of a private one from then on.

    Raises:
        ArtifactNotFound, ArtifactExpired, TaskIsForgotten: it is there no more.
    """
    task = attempt.task
    if task.submitted.private:
        attempt.key = await read_key(connection, task.id)
    if task.params_ref is None:
        return task.params or {}
    body, _ = await artifacts.get(connection, task.params_ref.sha256)
    return orjson.loads(body)


async def store_result(
    connection: Connection, attempt: Attempt, result: dict[str, Any], inline_most: int
) -> tuple[dict[str, Any] | None, ArtifactRef | None]:
    """Return a result as it is if it has at most so many bytes and is not private, and else where it is now."""
    body = orjson.dumps(result)
    if attempt.key is not None:
        return None, await artifacts.put_sealed(connection, attempt.key, attempt.id, RESULT, body, JSON)
    if len(body) <= inline_most:
        return result, None
    return None, await artifacts.put(connection, body, JSON)


def sealed_tick(attempt: Attempt, message: JobProgressed) -> str | None:
    """Return what a private task tells while it runs, sealed, in Base64; none if there is nothing to be hidden."""
    told = {"text": message.text, "reasoning": message.reasoning, "preview": message.preview}
    if attempt.key is None or not any(value is not None for value in told.values()):
        return None
    return base64.b64encode(sealing.seal(attempt.key, attempt.id, TICK, orjson.dumps(told))).decode()


def untold(failure: Failure) -> Failure:
    """Return a failure of a private task without its own words, which may repeat what was asked."""
    told = UNTOLD.get(failure.kind, "The attempt failed")
    return failure.model_copy(update={"message": f"{told}; no more is told of a private task."})
