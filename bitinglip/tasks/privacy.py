"""Private tasks: their parameters as artifacts that only their own key opens, and the end of that key.

In this order: the key is made, the artifact is stored, the event is appended. What comes between leaves a key, or a
key and an artifact, that no event knows of (`gateway/keysweep.py` looks for those). A key is therefore older than its
task's first event; one that is younger was made after the task's own was destroyed.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import Any

import orjson

from bitinglip.events import artifacts, sealing
from bitinglip.events.connection import Connection
from bitinglip.events.envelope import Recorded
from bitinglip.events.keys import destroy_key, key_for, made_at, read_key
from bitinglip.events.task import ArtifactRef, TaskQueued, TaskSubmitted, TaskSucceeded
from bitinglip.ids import TaskId

PARAMS, RESULT, FILE, TEMPLATE = "params", "result", "file", "template"
JSON = "application/json"


async def put_params(connection: Connection, task_id: TaskId, params: dict[str, Any]) -> ArtifactRef:
    """Store a private task's parameters; its key is made if there is none.

    Raises:
        NoServer, StreamFull: they cannot be stored now.
    """
    key = await key_for(connection, task_id)
    return await artifacts.put_sealed(connection, key, task_id, PARAMS, orjson.dumps(params), JSON)


async def request_digest(connection: Connection, owner: str, request: bytes) -> str:
    """Return the digest of a private request: a repeat has the same one, as long as the owner's key is there.

    Raises:
        NoServer, StreamFull: there is no key yet, and none can be made now.
    """
    return sealing.request_digest(await key_for(connection, owner), request)


async def resealed(connection: Connection, event: TaskSubmitted, before: TaskSubmitted) -> TaskSubmitted:
    """Return a task's first event that asks for what another one asked, under a key of its own.

    Raises:
        TaskIsForgotten: the other one was forgotten.
        ArtifactNotFound, ArtifactExpired: its parameters are there no more.
        NoServer, StreamFull: they cannot be stored now.
    """
    assert before.params_ref is not None
    body, _ = await artifacts.get(connection, before.params_ref.sha256)
    reference = await put_params(connection, event.task_id, orjson.loads(body))
    return event.model_copy(update={"params_ref": reference})


async def seal_template(connection: Connection, schedule_id: str, params: dict[str, Any]) -> str:
    """Return what a private schedule asks for each time, sealed, in Base64.

    Raises:
        NoServer, StreamFull: its key cannot be stored now.
    """
    key = await key_for(connection, schedule_id)
    return base64.b64encode(sealing.seal(key, schedule_id, TEMPLATE, orjson.dumps(params))).decode()


async def open_template(connection: Connection, schedule_id: str, sealed: str) -> dict[str, Any]:
    """Return what a private schedule asks for.

    Raises:
        TaskIsForgotten: its key was destroyed.
        NoServer: the server does not answer.
    """
    key = await read_key(connection, schedule_id)
    return orjson.loads(sealing.unseal(key, schedule_id, TEMPLATE, base64.b64decode(sealed)))


async def was_forgotten(connection: Connection, history: Seq[Recorded]) -> bool:
    """Tell whether the key that a task was asked with is gone; one that was made in its place is destroyed.

    Raises:
        NoServer: the server does not answer.
    """
    first = history[0]
    made = await made_at(connection, first.event.task_id) if isinstance(first.event, TaskSubmitted) else None
    if made is not None and made <= first.recorded_at and not any(each.type == "task.forgotten" for each in history):
        return False
    if isinstance(first.event, TaskSubmitted):
        await destroy_key(connection, first.event.task_id)
    return True


async def destroy(connection: Connection, history: Seq[Recorded]) -> None:
    """Destroy the key of a task, and that of the batch it came with, whose digest would tell of it; drop its artifacts.

    It can be done again, should it have ended half-way.

    Raises:
        NoServer: the server does not answer.
    """
    for recorded in history:
        if isinstance(recorded.event, TaskSubmitted):
            await destroy_key(connection, recorded.event.task_id)
            if recorded.event.batch_id is not None:
                await destroy_key(connection, recorded.event.batch_id)
    for digest in sealed_artifacts(history):
        await artifacts.drop(connection, digest)


def sealed_artifacts(history: Seq[Recorded]) -> Iterator[str]:
    """Yield the digests of what was sealed for a private task, as its events tell; nobody else's key opens them."""
    for recorded in history:
        match recorded.event:
            case TaskSubmitted(params_ref=reference) | TaskQueued(params_ref=reference) if reference is not None:
                yield reference.sha256
            case TaskSucceeded(result_ref=reference, files=files):
                yield from (*([reference.sha256] if reference is not None else []), *files)
            case _:
                pass
