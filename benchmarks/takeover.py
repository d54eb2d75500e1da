"""How soon a task runs again when what runs it is gone, and whether one that outlives its lease runs twice.

Every setting is at its default (a lease of 10 s, a back-off of 0.5 to 1 s). What is timed is from the signal to the
`task.assigned` of the next attempt, with two nodes of two workers each.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.node import assigned, pid_of
from benchmarks.support import Figure, nats_server, process, publish, quantile, scratch
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskAssigned, TaskProgressed
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal

ROUNDS = 10
NODES = 4
"""Whole nodes to be killed, each of which costs a lease."""
LONG = {"steps": 100_000, "step_ms": 20}
OUTLIVING = {"steps": 30, "step_ms": 1_000}
"""Three times the lease."""
SIDE_BY_SIDE = 4
"""One for each worker."""


async def measure() -> list[Figure]:
    """Kill engine processes, then whole nodes; let tasks outlive their lease."""
    async with scratch() as folder, nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url), "/bench")
        async with AsyncExitStack() as stack:
            for name in ("one", "other"):
                await stack.enter_async_context(_node(server.url, folder / name))
            prompt = await _times(log, ROUNDS, _kill_engine, {"base_ms": 0})
            engines = await _times(log, ROUNDS, _kill_engine, {})
            attempts = await _outlive(log)
        nodes = [await _whole_node(log, server.url, folder / f"gone-{number}") for number in range(NODES)]
        await log.close()
    return [
        _figure("engine process killed → its task's next attempt, median", engines, 1, "default back-off"),
        _figure("the same, without a back-off (`retry.base_ms` 0)", prompt, 1, ""),
        _figure("whole node gone → the next attempt elsewhere, longest", nodes, 11, "lease 10 s", longest=True),
        Figure(
            "attempts of tasks that run for three leases", max(attempts), "", 1, False, f"{len(attempts)} tasks of 30 s"
        ),
    ]


def _figure(question: str, times: list[float], bound: float, note: str, *, longest: bool = False) -> Figure:
    told = f"{len(times)} kills, {min(times):.2f} to {max(times):.2f} s; {note}".rstrip("; ")
    return Figure(question, quantile(times, 1.0 if longest else 0.5), "s", bound, False, told)


async def _times(
    log: EventLog, rounds: int, kill: Callable[[int], Awaitable[None]], retry: dict[str, int]
) -> list[float]:
    """Kill what runs a task; each round has a task of its own, so that the back-off is the first one."""
    return [await _time(log, kill, retry) for _ in range(rounds)]


async def _time(log: EventLog, kill: Callable[[int], Awaitable[None]], retry: dict[str, int]) -> float:
    inbox = Inbox(log, 65_536)
    task_id = (await inbox.submit(_echo(LONG, retry))).task_id
    worker_id, _ = await assigned(log, task_id, 1)
    pid = await pid_of(log, worker_id)
    await _history(log, task_id, lambda recorded: isinstance(recorded.event, TaskProgressed))
    killed = log.clock()
    await kill(pid)
    seconds = ((await assigned(log, task_id, 2))[1] - killed).total_seconds()
    await inbox.cancel(task_id, CancelTask())
    return seconds


async def _kill_engine(worker: int) -> None:
    for pid in _children(worker):
        os.kill(pid, signal.SIGKILL)


async def _whole_node(log: EventLog, url: str, folder: Path) -> float:
    """Stop an agent and its worker at one stroke, so that nobody hands anything back, and end them."""
    async with AsyncExitStack() as stack:
        agent, _ = await stack.enter_async_context(_node(url, folder, workers=1))

        async def kill(worker: int) -> None:
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in (agent.pid, worker):
                    os.kill(pid, number)
            await stack.enter_async_context(_node(url, folder / "again", workers=1))

        return await _time(log, kill, {})


async def _outlive(log: EventLog) -> list[int]:
    """Return how many attempts each of some long tasks took."""
    inbox = Inbox(log, 65_536)
    tasks = [(await inbox.submit(_echo(OUTLIVING, {}))).task_id for _ in range(SIDE_BY_SIDE)]
    counts: list[int] = []
    for task_id in tasks:
        history = await _history(log, task_id, lambda recorded: is_terminal(recorded.event))
        counts.append(sum(isinstance(recorded.event, TaskAssigned) for recorded in history))
    return counts


async def _history(log: EventLog, task_id: TaskId, until: Callable[[Recorded], bool]) -> list[Recorded]:
    """Follow a task up to some event; returns all its events by then."""
    history: list[Recorded] = []
    async with aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            history += batch
            if any(until(recorded) for recorded in batch):
                break
    return history


def _echo(params: dict[str, Any], retry: dict[str, int]) -> SubmitTask:
    return SubmitTask.model_validate({"kind": "echo", "model": "echo", "params": params, "retry": retry})


def _children(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children()]


def _node(nats_url: str, folder: Path, workers: int = 2) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return process(
        "node",
        nats_url,
        folder,
        BITINGLIP_WORKER_MODELS="echo",
        BITINGLIP_WORKER_NODE=folder.name,
        BITINGLIP_NODE_WORKERS=workers,
        BITINGLIP_WORKER_GRACE_S=0,
    )


if __name__ == "__main__":
    publish(uvloop.run(measure()))
