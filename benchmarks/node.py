"""What a node agent costs while nothing happens, and how fast a dead worker's task runs again."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.support import Figure, nats_server, process, publish, quantile, scratch
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskAssigned
from bitinglip.events.worker import WorkerStarted
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox

SETTLE_S = 5.0
WATCH_S = 60.0
KILLS = 10
WORKERS = 6
LONG = {"steps": 100_000, "step_ms": 20}


async def measure() -> list[Figure]:
    """Watch an agent with as many workers as a rig has cards; then kill workers."""
    async with scratch() as folder, nats_server(folder) as server:
        idle = await _idle(server.url, folder)
        kills = await _kills(server.url, folder)
    note = f"{KILLS} kills, {quantile(kills, 0.0):.2f} to {quantile(kills, 1.0):.2f} s"
    return [
        *idle,
        Figure("worker killed → its task's next attempt, median", quantile(kills, 0.5), "s", 2, False, note),
    ]


async def _idle(nats_url: str, folder: Path) -> list[Figure]:
    async with _node(nats_url, folder, WORKERS) as (agent, _):
        await asyncio.sleep(SETTLE_S)
        before = agent.cpu_times()
        await asyncio.sleep(WATCH_S)
        after = agent.cpu_times()
        used_s = after.user + after.system - before.user - before.system
        size = agent.memory_info().rss / 1e6
    note = f"{WORKERS} workers, {WATCH_S:.0f} s"
    return [
        Figure("idle node agent", used_s / WATCH_S * 100, "% of a core", 0.2, at_least=False, note=note),
        Figure("resident, node agent", size, "MB", 60, at_least=False, note=note),
    ]


async def _kills(nats_url: str, folder: Path) -> list[float]:
    """Kill the worker that runs a long task, again and again; returns the seconds to each next attempt."""
    log = await EventLog.connect(Nats(url=nats_url), "/bench")
    took: list[float] = []
    async with _node(nats_url, folder, WORKERS):
        retry = {"max_attempts": KILLS + 1}
        command = SubmitTask.model_validate({"kind": "echo", "model": "echo", "params": LONG, "retry": retry})
        task_id = (await Inbox(log, 65_536).submit(command)).task_id
        for attempt in range(1, KILLS + 1):
            worker_id, _ = await assigned(log, task_id, attempt)
            pid = await pid_of(log, worker_id)
            killed = log.clock()
            os.kill(pid, signal.SIGKILL)
            took.append(((await assigned(log, task_id, attempt + 1))[1] - killed).total_seconds())
    await log.close()
    return took


async def assigned(log: EventLog, task_id: TaskId, attempt: int) -> tuple[str, datetime]:
    """Wait for an attempt; returns whose it is, and when it was assigned."""
    async with aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            for recorded in batch:
                if isinstance(recorded.event, TaskAssigned) and recorded.event.attempt == attempt:
                    return recorded.event.worker_id, recorded.time
    raise AssertionError("a task's events never end")


async def pid_of(log: EventLog, worker_id: str) -> int:
    started = await log.read_last("WORKERS", f"bl.worker.{worker_id}.started")
    assert started is not None
    assert isinstance(started.event, WorkerStarted)
    return started.event.pid


def _node(nats_url: str, folder: Path, workers: int) -> Any:
    return process(
        "node",
        nats_url,
        folder,
        BITINGLIP_WORKER_MODELS="echo",
        BITINGLIP_NODE_WORKERS=workers,
        BITINGLIP_WORKER_GRACE_S=0,
    )


if __name__ == "__main__":
    publish(uvloop.run(measure()))
