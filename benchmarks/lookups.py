"""How long does a look-up of a task take while the read model is made anew: the query, and `GET /v1/tasks/{id}`.

python -m benchmarks.lookups --events 300000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import uvloop

from benchmarks.histories import history
from benchmarks.lag import publish_beside
from benchmarks.support import Figure, gateway, nats_server, quantile, scratch
from bitinglip.events.log import EventLog
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Nats, Projections

EVENTS = 300_000
EVERY_S = 0.01
LookUp = Callable[[str], Awaitable[bool]]
"""Looks a task up by its id, and tells whether it was found."""


async def watched(look_up: LookUp, ids: Sequence[str], until: asyncio.Future[Any]) -> list[float]:
    """Look tasks up, one every now and then, until that is done; return the milliseconds that each took."""
    took: list[float] = []
    for task_id in itertools.cycle(ids):
        started = time.perf_counter()
        if not await look_up(task_id):
            raise RuntimeError(f"{task_id} was not found")
        took.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(EVERY_S)
        if until.done():
            break
    return took


async def before_and_while(look_up: LookUp, ids: Sequence[str], rebuild: Callable[[], Awaitable[None]]) -> Any:
    """Watch look-ups for three seconds, and then while the read model is made anew."""
    quiet = await watched(look_up, ids, asyncio.ensure_future(asyncio.sleep(3)))
    started = time.perf_counter()
    rebuilding = asyncio.ensure_future(rebuild())
    busy = await watched(look_up, ids, rebuilding)
    await rebuilding
    return {
        "quiet_ms": [round(quantile(quiet, part), 2) for part in (0.5, 0.99)],
        "rebuilding_ms": [round(quantile(busy, part), 2) for part in (0.5, 0.99)],
        "longest_ms": round(max(busy), 1),
        "lookups": len(busy),
        "rebuild_s": round(time.perf_counter() - started, 2),
    }


def some_ids(events: int) -> list[str]:
    """Return the ids of tasks that are spread over the history."""
    found = dict.fromkeys(message.subject.split(".")[2] for message in itertools.islice(history(events), 0, None, 97))
    return list(found)


async def in_process(url: str, folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Ask the read model as the gateway does, in its own process and loop."""
    log = await EventLog.connect(Nats(url=url), "/benchmark")
    readmodel = await ReadModel.open(Projections(), folder / "lookups.duckdb", log)
    await readmodel.wait_ready()

    async def look_up(task_id: str) -> bool:
        return await readmodel.queries.task(task_id) is not None

    try:
        return {"what": "query"} | await before_and_while(look_up, ids, readmodel.rebuild)
    finally:
        await readmodel.close()
        await log.close()


async def over_http(url: str, folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Ask a gateway over one kept connection, from this process."""
    async with gateway(url, folder) as (_, ready):
        asking, commanding = await Client.open(ready["url"]), await Client.open(ready["url"])

        async def look_up(task_id: str) -> bool:
            return await asking.request("GET", f"/v1/tasks/{task_id}") == 200

        async def rebuild() -> None:
            if await commanding.request("POST", "/v1/projections/rebuild") >= 300:
                raise RuntimeError("the rebuild failed")

        while not await look_up(ids[-1]):  # noqa: ASYNC110  (it catches up)
            await asyncio.sleep(0.1)
        found = await before_and_while(look_up, ids, rebuild)
        await asyncio.gather(asking.close(), commanding.close())
    return {"what": "http"} | found


class Client:
    """One kept HTTP connection."""

    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    @classmethod
    async def open(cls, url: str) -> Client:
        """Connect to a server."""
        parts = urlsplit(url)
        return cls(parts.netloc, *await asyncio.open_connection(parts.hostname, parts.port))

    async def request(self, method: str, path: str) -> int:
        """Send a request without a body, read the answer, and return its status."""
        self._writer.write(f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: 0\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await self._reader.readexactly(int(fields.get("content-length", 0)))
        if body:
            orjson.loads(body)
        return int(head.split()[1])

    async def close(self) -> None:
        """Disconnect."""
        self._writer.close()
        await self._writer.wait_closed()


async def run(events: int) -> list[dict[str, Any]]:
    async with scratch() as folder, nats_server(folder) as server:
        await publish_beside(server.url, 0, events, 0)
        ids = some_ids(events)
        return [await in_process(server.url, folder, ids), await over_http(server.url, folder, ids)]


async def measure() -> list[Figure]:
    """Measure for `make bench`."""
    query, http = await run(EVENTS)
    return [
        Figure(what, found["rebuilding_ms"][1], "ms", 5, False, f"median {found['rebuilding_ms'][0]} ms")
        for what, found in (
            ("look-up of a task while the read model is made anew, p99: the query", query),
            ("the same, `GET /v1/tasks/{id}`", http),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=EVENTS)
    for row in uvloop.run(run(parser.parse_args().events)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
