"""`make bench`: every question, one after the other, and one table at the end."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from benchmarks import engines, idle, lag, latency, lookups, memory, node, post, throughput
from benchmarks.rebuild import WHAT
from benchmarks.support import Figure, publish

REBUILT = 1_000_000


async def rebuild() -> list[Figure]:
    """Rebuild in processes of their own, for their peaks of memory."""
    half, plain, whole = [await _rebuild(what) for what in WHAT]
    note = f"the DuckDB half alone {half['events_per_s']:,}/s; processor time an event, µs: {whole['cpu_us']}"
    ratio = whole["events_per_s"] / plain["events_per_s"]
    return [
        Figure("rebuild of 1,000,000 events, end to end", whole["events_per_s"], "events/s", 150_000, True, note),
        Figure("the same, to an INSERT for each event", ratio, "times", 1, True, f"{plain['events_per_s']:,} events/s"),
        Figure("the same, most resident memory", whole["peak_rss_mb"], "MB", 1_500, at_least=False),
    ]


async def _rebuild(what: str) -> dict[str, Any]:
    command = ("-m", "benchmarks.rebuild", "--only", what, "--events", str(REBUILT))
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=subprocess.PIPE)
    output, _ = await process.communicate()
    return json.loads(output)


QUESTIONS: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "post": post.measure,
    "rebuild": rebuild,
    "lag": lag.measure,
    "lookups": lookups.measure,
    "idle": idle.measure,
    "node": node.measure,
    "engines": engines.measure,
    "memory": memory.measure,
}


async def main() -> None:
    """Measure what is named, or everything."""
    figures: list[Figure] = []
    for name in sys.argv[1:] or QUESTIONS:
        sys.stdout.write(f"{name} …\n")
        sys.stdout.flush()
        figures += await QUESTIONS[name]()
    publish(figures)


if __name__ == "__main__":
    uvloop.run(main())
