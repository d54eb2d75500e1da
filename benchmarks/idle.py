"""What a gateway and a worker cost while nothing happens: processor and memory."""

from __future__ import annotations

import asyncio

import psutil
import uvloop

from benchmarks.support import Figure, gateway, nats_server, publish, scratch, worker

SETTLE_S = 5.0
WATCH_S = 30.0


async def measure() -> list[Figure]:
    """Watch one of each for a while."""
    async with (
        scratch() as folder,
        nats_server(folder) as server,
        worker(server.url, folder) as (worker_process, _),
        gateway(server.url, folder) as (gateway_process, _),
    ):
        await asyncio.sleep(SETTLE_S)
        before = [_seconds(process) for process in (gateway_process, worker_process)]
        await asyncio.sleep(WATCH_S)
        after = [_seconds(process) for process in (gateway_process, worker_process)]
        shares = [(end - start) / WATCH_S * 100 for start, end in zip(before, after, strict=True)]
        sizes = [process.memory_info().rss / 1e6 for process in (gateway_process, worker_process)]
    return [
        Figure("idle gateway", shares[0], "% of a core", 1, at_least=False),
        Figure("idle worker", shares[1], "% of a core", 1, at_least=False),
        Figure("resident, gateway", sizes[0], "MB", 200, at_least=False),
        Figure("resident, worker before its engine starts", sizes[1], "MB", 80, at_least=False),
    ]


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    publish(uvloop.run(measure()))
