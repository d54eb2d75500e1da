"""How soon one task is read out of a large log: by direct gets, as we do, and by a consumer with a filter.

    python -m benchmarks.reads --tasks 100000

A private nats-server holds so many tasks that are over. Some of them, spread over the log, are read one after the
other, in turns with the floor: the get of one message by its sequence.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.archive import fill, over
from benchmarks.support import machine, nats_server, quantile
from bitinglip.events import subjects
from bitinglip.events.direct import get_after, get_at
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.settings import Nats

READ = 300


async def measure(tasks: int, folder: Path) -> dict[str, Any]:
    """Measure one log."""
    async with nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url, append_timeout_s=60.0), "/benchmark")
        try:
            events = await fill(log, tasks)
            return {"tasks": tasks, "events": events} | await _measure(log, events, _sizes(tasks))
        finally:
            await log.close()


def _sizes(tasks: int) -> dict[TaskId, int]:
    """Return of each task how many events it has."""
    sizes: dict[TaskId, int] = {}
    for message in over(tasks):
        task_id = TaskId(message.subject.split(".")[2])
        sizes[task_id] = sizes.get(task_id, 0) + 1
    return sizes


async def _measure(log: EventLog, events: int, sizes: dict[TaskId, int]) -> dict[str, Any]:
    dice = random.Random(3)
    chosen = dice.sample(sorted(sizes), READ)
    floor, direct, consumed = list[float](), list[float](), list[float]()
    for task_id in chosen:
        floor.append(await _timed(lambda: get_at(log.connection, TASKS, dice.randint(1, events))))
        direct.append(await _timed(lambda task_id=task_id: _direct(log, task_id, sizes[task_id])))
        consumed.append(await _timed(lambda task_id=task_id: _consumed(log, task_id, sizes[task_id])))
    found = {"one_message": floor, "task_by_direct_gets": direct, "task_by_a_consumer": consumed}
    told = {
        f"{name}_ms": {"median": round(statistics.median(taken), 3), "p99": round(quantile(taken, 0.99), 3)}
        for name, taken in found.items()
    }
    return told | {
        "direct_to_floor": round(statistics.median(direct) / statistics.median(floor), 2),
        "consumer_to_direct": round(statistics.median(consumed) / statistics.median(direct), 2),
    }


async def _direct(log: EventLog, task_id: TaskId, size: int) -> None:
    found = await get_after(log.connection, TASKS, subjects.task_events(task_id), 0)
    if len(found) != size:
        raise RuntimeError(f"{task_id} has {len(found)} events, not {size}")


async def _consumed(log: EventLog, task_id: TaskId, size: int) -> None:
    found = 0
    async with aclosing(log.tail(TASKS, 0, filters=[subjects.task_events(task_id)])) as batches:
        async for batch in batches:
            found += len(batch)
            if found >= size:
                return


async def _timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the milliseconds that something takes."""
    started = time.perf_counter()
    await work()
    return (time.perf_counter() - started) * 1000


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as folder:
        found = uvloop.run(measure(parser.parse_args().tasks, Path(folder)))
    print(json.dumps(machine() | found, indent=2))


if __name__ == "__main__":
    main()
