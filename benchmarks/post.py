"""How many submissions a gateway takes a second, over 32 kept connections; each 202 is then looked for in the log."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

import uvloop

from benchmarks.load import ECHO, post_many
from benchmarks.support import Figure, gateway, nats_server, publish, quantile, scratch, worker
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.settings import Nats

CONNECTIONS = 32
REQUESTS = 20_000
WARM_UP = 2_000


async def measure() -> list[Figure]:
    """Measure one gateway that projects what it accepts; the worker has only said that it serves `echo`."""
    async with scratch() as folder, nats_server(folder) as server:
        async with worker(server.url, folder):
            pass
        async with gateway(server.url, folder) as (_, ready):
            parts = urlsplit(ready["url"])
            target = (parts.hostname or "", parts.port or 0, "/v1/tasks", ECHO, CONNECTIONS)
            await asyncio.to_thread(_run, target, WARM_UP)
            started = time.perf_counter()
            latencies = await asyncio.to_thread(_run, target, REQUESTS)
            rate = len(latencies) / (time.perf_counter() - started)
        log = await EventLog.connect(Nats(url=server.url), "/bench")
        stored = await log.last_sequence(TASKS)
        await log.close()
    return [
        Figure("POST /v1/tasks, 32 connections", rate, "requests/s", 2500, at_least=True),
        Figure("the same, p99", quantile(latencies, 0.99) * 1000, "ms", 40, at_least=False),
        Figure("accepted tasks that the log has", stored / (REQUESTS + WARM_UP), "", 1, at_least=True),
    ]


def _run(target: tuple[str, int, str, bytes, int], requests: int) -> list[float]:
    return asyncio.run(post_many(*target, requests))


if __name__ == "__main__":
    publish(uvloop.run(measure()))
