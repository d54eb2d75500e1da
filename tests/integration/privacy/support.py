"""What the tests of private tasks share."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson

from bitinglip.events.direct import get_after
from bitinglip.events.log import EventLog
from tests.support.cluster import Cluster, Process
from tests.support.server import RestartableServer, eventually

MARKER = "MANGROVE-7431-otter"
OVER = {"succeeded", "failed", "cancelled", "expired", "dead_lettered"}


def private(message: Any = MARKER, **more: Any) -> dict[str, Any]:
    """Return a private echo task."""
    params = {"message": message} | more.pop("params", {})
    return {"kind": "echo", "model": "echo", "private": True, "params": params} | more


@dataclass
class House:
    """A cluster of processes, and the folder of all that they write."""

    server: RestartableServer
    cluster: Cluster
    gateway: Process
    worker: Process
    log: EventLog
    client: httpx.AsyncClient
    folder: Path
    stopped: bool = False

    async def submit(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> str:
        """Submit a task."""
        answer = await self.client.post("/v1/tasks", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()["task_id"]

    async def over(self, task_id: str) -> dict[str, Any]:
        """Wait for a task's end, and return it."""

        async def ended() -> dict[str, Any] | None:
            task = (await self.client.get(f"/v1/tasks/{task_id}")).json()
            return task if task["state"] in OVER else None

        return await eventually(ended, 30)

    async def run(self, body: dict[str, Any]) -> dict[str, Any]:
        """Run a task to its end."""
        return await self.over(await self.submit(body))

    async def stop(self) -> None:
        """Stop every process, so that all they hold is in their files."""
        if self.stopped:
            return
        self.stopped = True
        await self.worker.stop()
        await self.gateway.stop()
        await self.log.close()
        await self.server.stop()

    def found_in(self, marker: str | bytes = MARKER) -> list[str]:
        """Return the files that have a marker in them: as it is, or in Base64 at any of the three offsets."""
        needles = forms(marker.encode() if isinstance(marker, str) else marker)
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [path.name for path in files if any(needle in path.read_bytes() for needle in needles)]

    async def stored(self, stream: str) -> list[dict[str, Any]]:
        """Return what is in a stream: its events, and what else is there."""
        messages = await get_after(self.log.connection, stream, ">", 0)
        return [orjson.loads(message.payload) for message in messages if message.payload]


def forms(marker: bytes) -> Iterable[bytes]:
    """Return the marker as it is, and the inner part of its Base64 at each offset."""
    encoded = [base64.b64encode(b"\0" * offset + marker)[4:-4] for offset in range(3)]
    return [marker, *encoded]
