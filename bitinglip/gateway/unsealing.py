"""Private tasks on their way out: opened for who asks for them by their id, while they can be.

What is larger than an event may be stays an artifact, as for every task; `GET /v1/artifacts/{digest}` opens that too.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import fields
from typing import Any

import orjson

from bitinglip.errors import ArtifactExpired, ArtifactNotFound, TaskIsForgotten
from bitinglip.events import artifacts, sealing
from bitinglip.events.envelope import RawMessage
from bitinglip.events.keys import find_key
from bitinglip.gateway.context import Gateway
from bitinglip.projections.rows import TaskRow

TICK = "tick"
MARKS = (b'"sealed":"', b'"encrypted":"')
"""One of them is in every event that has something to be opened."""
OPENED = {"params_ref": "params", "result_ref": "result"}


async def shown(gateway: Gateway, row: TaskRow) -> dict[str, Any]:
    """Return a task as it is answered, what is private of it opened; what cannot be is left out.

    Raises:
        NoServer: the keys or the artifacts cannot be asked.
    """
    told: dict[str, Any] = {field.name: getattr(row, field.name) for field in fields(row)}
    return await _opened(gateway, told) if row.private and row.forgotten_at is None else told


async def batches(
    gateway: Gateway, task_id: str, source: AsyncGenerator[Seq[RawMessage]]
) -> AsyncGenerator[Seq[RawMessage]]:
    """Yield a task's events with what is sealed in them opened."""
    opener = Opener(gateway, task_id)
    async with aclosing(source):
        async for batch in source:
            yield [await opener.opened(message) for message in batch]


class Opener:
    """Opens one task's events; its key is read when the first of them needs it."""

    def __init__(self, gateway: Gateway, task_id: str) -> None:
        self._gateway = gateway
        self._task_id = task_id
        self._key: bytes | None = None

    async def opened(self, message: RawMessage) -> RawMessage:
        """Return an event opened; one that has nothing sealed, or cannot be opened any more, as it is.

        Raises:
            NoServer: the keys or the artifacts cannot be asked.
        """
        if not any(mark in message.payload for mark in MARKS):
            return message
        document: dict[str, Any] = orjson.loads(message.payload)
        data: dict[str, Any] = document["data"]
        sealed = data.get("sealed")
        after = data | await self._tick(sealed) if sealed else await _opened(self._gateway, data)
        return message._replace(payload=orjson.dumps(document | {"data": after}))

    async def _tick(self, sealed: str) -> dict[str, Any]:
        if self._key is None:
            self._key = await find_key(self._gateway.log.connection, self._task_id)
        if self._key is None:
            return {}
        told = sealing.unseal(self._key, self._task_id, TICK, base64.b64decode(sealed))
        return orjson.loads(told) | {"sealed": None}


async def _opened(gateway: Gateway, data: dict[str, Any]) -> dict[str, Any]:
    """Return a task's (or an event's) fields with what its encrypted references lead to in its place."""
    found, most = dict(data), gateway.settings.log.inline_max_bytes
    for name, place in OPENED.items():
        reference: dict[str, Any] = data.get(name) or {}
        if reference.get("encrypted") and reference["size_bytes"] <= most:
            try:
                body, _ = await artifacts.get(gateway.log.connection, reference["sha256"])
            except (ArtifactNotFound, ArtifactExpired, TaskIsForgotten):
                continue
            found[place] = orjson.loads(body)
    return found
