"""How long the past takes: one task, a page of tasks, the whole cluster at a moment, and the timeline in buckets.

    python -m benchmarks.past --tasks 100000

Over HTTP, from a gateway that has caught up with a log of so many tasks, 2,000 of them in flight at any time: the
moments are spread over the log. Beside them the same answers about now.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import uvloop

from benchmarks.histories import START, history
from benchmarks.rebuild import publish as publish_history
from benchmarks.support import Figure, gateway, nats_server, publish, quantile, scratch
from bitinglip.events.log import EventLog
from bitinglip.settings import Nats

EVENTS_PER_TASK = 6
ROUNDS = 30
CATCH_UP_S = 300.0
BUCKETS = 60


async def measure(tasks: int = 100_000) -> list[Figure]:
    """Fill a log, let a gateway catch up, and ask it."""
    events = tasks * EVENTS_PER_TASK
    async with scratch() as folder, nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url), "/benchmark")
        await publish_history(log, events)
        await log.close()
        return await _ask(server.url, folder, events)


async def _ask(nats_url: str, folder: Path, events: int) -> list[Figure]:
    moments = [events * (number + 1) // (ROUNDS + 2) for number in range(ROUNDS)]
    ids = _in_flight(events, moments)
    at = [{"as_of": moment} for moment in moments]
    running: list[dict[str, Any]] = [each | {"state": "running", "limit": 50} for each in at]
    ranges: list[dict[str, Any]] = [{"from": START.isoformat(), "buckets": BUCKETS}] * ROUNDS
    now: list[dict[str, Any]] = [{}] * ROUNDS
    tasks = [f"/v1/tasks/{task_id}" for task_id in ids]
    pages, clusters, timelines = (["/v1/tasks"] * ROUNDS, ["/v1/cluster"] * ROUNDS, ["/v1/timeline"] * ROUNDS)
    questions: list[tuple[str, list[str], list[dict[str, Any]], float]] = [
        ("one task at a moment at which it ran", tasks, at, 50),
        ("the same task about now", tasks, now, 50),
        ("a page of 50 tasks at a moment", pages, at, 100),
        ("a page of those that ran then", pages, running, 200),
        ("a page of tasks about now", pages, now, 50),
        ("the whole cluster at a moment", clusters, at, 300),
        ("a timeline of 60 buckets over the whole log", timelines, ranges, 50),
    ]
    async with AsyncExitStack() as stack:
        ours = gateway(nats_url, folder, BITINGLIP_PROJECTIONS_READ_WAIT_S=CATCH_UP_S)
        _, ready = await stack.enter_async_context(ours)
        client = httpx.AsyncClient(base_url=ready["url"], timeout=CATCH_UP_S, trust_env=False)
        await stack.enter_async_context(client)
        await _get(client, "/v1/tasks", as_of=events)
        return [_figure(asked, await _times(client, paths, params), bound) for asked, paths, params, bound in questions]


def _in_flight(events: int, moments: Sequence[int]) -> list[str]:
    """Return, for each moment, a task whose events lie on both sides of it, if there is one near."""
    found: list[str] = []
    wanted = iter(moments)
    moment = next(wanted)
    for message in history(events):
        if message.sequence > moment and ".progressed" in message.subject:
            found.append(message.subject.split(".")[2])
            if (after := next(wanted, None)) is None:
                break
            moment = after
    return found


async def _times(client: httpx.AsyncClient, paths: Sequence[str], params: Sequence[dict[str, Any]]) -> list[float]:
    times: list[float] = []
    for path, asked in zip(paths, params, strict=True):
        started = time.perf_counter()
        await _get(client, path, **asked)
        times.append((time.perf_counter() - started) * 1_000)
    return times


async def _get(client: httpx.AsyncClient, path: str, **params: Any) -> None:
    (await client.get(path, params=params)).raise_for_status()


def _figure(question: str, times: list[float], bound: float) -> Figure:
    note = f"p95 {quantile(times, 0.95):.0f} ms, {len(times)} times"
    return Figure(question, round(quantile(times, 0.5), 1), "ms", bound, at_least=False, note=note)


def main() -> None:
    """Measure a log of so many tasks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100_000)
    publish(uvloop.run(measure(parser.parse_args().tasks)))


if __name__ == "__main__":
    main()
