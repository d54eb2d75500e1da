"""How soon is an event to be seen in the read model, and what does a projector cost, at several rates.

    python -m benchmarks.lag --rates 10 100 1000 5000 --seconds 10

The events come from a process of their own; the lag is from the time that the server gave an event when it stored it to
the commit after which a query sees it, for each event. CPU is that of the projector's process, in percent of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.histories import history
from benchmarks.support import Figure, nats_server, quantile, scratch
from bitinglip.events.feed import TaskFeed
from bitinglip.events.log import EventLog
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.generation import Generation, Ground, open_generation
from bitinglip.settings import Nats, Projections

BEFORE = 20_000
"""Events that are in the log at the start: its tasks are then at all points of their lives."""
TURN_S = 0.005
RATES = (10, 100, 1000, 5000)


class Watched(Checkpoints):
    """Remembers when what was committed."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[tuple[int, int]] = []
        """Of each: sequence, and the time in nanoseconds."""

    def advance(self, stream: str, sequence: int) -> None:
        """Remember it, and wake who waits."""
        super().advance(stream, sequence)
        if stream == "TASKS":
            self.commits.append((sequence, time.time_ns()))


async def publish(url: str, rate: int, count: int, skip: int) -> None:
    """Publish `count` events of the history at a steady rate; a rate of 0 is as fast as the server takes them.

    Without acks, so the server is let keep up: it drops what it has no room for.
    """
    log = await EventLog.connect(Nats(url=url), "/benchmark")
    events = islice(history(skip + count), skip, None)
    started, sent = time.perf_counter(), 0
    while sent < count:
        due = min(count, int((time.perf_counter() - started) * rate) if rate else sent + 5_000)
        for message in islice(events, max(0, due - sent)):
            await log.connection.publish(message.subject, message.payload)
        sent = max(sent, due)
        await log.connection.client.flush(timeout=60)
        while sent % 5_000 == 0 and await log.last_sequence("TASKS") < skip + sent:  # noqa: ASYNC110  (it tells nobody)
            await asyncio.sleep(0.01)
        await asyncio.sleep(TURN_S if rate else 0)
    await log.close()


async def publish_beside(url: str, rate: int, count: int, skip: int) -> None:
    """Do that in a process of its own."""
    told = [str(each) for each in (rate, count, skip)]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.lag", "--publish", url, *told)
    if await process.wait():
        raise RuntimeError("the events could not be published")


@asynccontextmanager
async def projecting(url: str, folder: Path, settings: Projections) -> AsyncIterator[tuple[Generation, Watched]]:
    """Keep a read model up with the log."""
    log = await EventLog.connect(Nats(url=url), "/benchmark")
    checkpoints = Watched()
    path = folder / "live.duckdb"
    generation = await open_generation(path, Ground.of(settings, log), checkpoints, TaskFeed())
    try:
        await generation.projector.wait_caught_up()
        await generation.projector.settle(60.0)  # what trails would do that while nothing comes
        yield generation, checkpoints
    finally:
        await generation.close()
        await log.close()


async def at_rate(generation: Generation, checkpoints: Watched, url: str, rate: int, seconds: float) -> dict[str, Any]:
    """Measure one rate."""
    first, count = checkpoints.applied("TASKS") + 1, max(1, int(rate * seconds))
    checkpoints.commits.clear()
    started, worked = time.perf_counter(), time.process_time()
    await publish_beside(url, rate, count, first - 1)
    await checkpoints.wait("TASKS", first + count - 1, 60.0)
    took_s, worked_s = time.perf_counter() - started, time.process_time() - worked
    ask = f"select sequence, epoch_ns(recorded_at) from events where stream = 'TASKS' and sequence >= {first}"
    stored = await generation.readers.run(lambda database: database.rows(ask))
    ends = [sequence for sequence, _ in checkpoints.commits]
    lags = [(checkpoints.commits[bisect_left(ends, sequence)][1] - at) / 1e6 for sequence, at in stored]
    return {
        "rate": rate,
        "lag_ms_median": round(quantile(lags, 0.5), 1),
        "lag_ms_p99": round(quantile(lags, 0.99), 1),
        "cpu_percent": round(100 * worked_s / took_s, 2),
        "cpu_ms_per_transaction": round(1000 * worked_s / len(ends), 2),
        "transactions_per_s": round(len(ends) / took_s, 1),
    }


async def idle(seconds: float) -> dict[str, Any]:
    """Measure what it costs while nothing comes."""
    worked = time.process_time()
    await asyncio.sleep(seconds)
    return {"rate": 0, "cpu_percent": round(100 * (time.process_time() - worked) / seconds, 2)}


async def run(rates: list[int], seconds: float, settings: Projections) -> list[dict[str, Any]]:
    """Measure all rates, one after the other, in one read model."""
    async with scratch() as folder, nats_server(folder) as server:
        await publish_beside(server.url, 0, BEFORE, 0)
        async with projecting(server.url, folder, settings) as (generation, checkpoints):
            found = [await idle(seconds)]
            for rate in rates:
                found.append(await at_rate(generation, checkpoints, server.url, rate, seconds))
    return found


async def measure() -> list[Figure]:
    """Measure for `make bench`."""
    quiet, busy = await run([1000], 10, Projections())
    note = f"p99 {busy['lag_ms_p99']} ms, {busy['cpu_percent']} % of a core"
    return [
        Figure("event stored → seen by a query, at 1,000 events/s", busy["lag_ms_median"], "ms", 50, False, note),
        Figure("projector while nothing comes", quiet["cpu_percent"], "% of a core", 0.5, at_least=False),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--flush-ms", type=float, default=Projections().flush_ms)
    parser.add_argument("--publish", nargs=4, metavar=("URL", "RATE", "COUNT", "SKIP"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.publish:
        url, *numbers = arguments.publish
        uvloop.run(publish(url, *map(int, numbers)))
        return
    for row in uvloop.run(run(arguments.rates, arguments.seconds, Projections(flush_ms=arguments.flush_ms))):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
