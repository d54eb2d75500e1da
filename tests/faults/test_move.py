"""A single server's log is moved to three servers, as `deploy/nats-cluster/README.md` says."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.cli.natsserver import PrivateServer, find_or_fetch
from bitinglip.events.direct import get_after
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.state import Task, fold, is_terminal
from tests.support.cluster import Cluster
from tests.support.natscluster import NatsCluster
from tests.support.server import eventually

ECHO: dict[str, Any] = {"kind": "echo", "model": "echo", "params": {"message": "hello"}}
BIG = "x" * 200_000
THREE = {"BITINGLIP_NATS_REPLICAS": "3"}
DELAY_S = 20
"""A timer that is pending when the log is moved."""
TIMED = 2
"""Tasks with a timer: the last ones of those that have not ended."""


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[PrivateServer]:
    """The server of `bitinglip up`, with its store where the command line looks for it."""
    server = PrivateServer(find_or_fetch(), tmp_path / "one" / "nats")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    servers = NatsCluster(tmp_path / "three")
    yield servers
    await servers.kill()


@pytest.fixture
async def stack(one: PrivateServer, three: NatsCluster) -> AsyncIterator[AsyncExitStack]:
    """What is to be closed while the servers are still there."""
    async with AsyncExitStack() as stack:
        yield stack


def cluster_on(url: str, folder: Path, stack: AsyncExitStack) -> Cluster:
    """Return a cluster whose processes end with the test, if not before."""
    cluster = Cluster(url, folder)
    stack.push_async_callback(cluster.close)
    return cluster


async def log_on(nats: Nats, stack: AsyncExitStack) -> EventLog:
    """Return a connection to the log, once there is one: leaders may have to be elected."""
    log: EventLog = await eventually(lambda: EventLog.connect(nats, "/test"), within_s=60)
    stack.push_async_callback(log.close)
    return log


async def bitinglip(*arguments: str, **environment: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bitinglip.cli.main"),
        *arguments,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def submit(client: httpx.AsyncClient, **body: Any) -> TaskId:
    answer = await client.post("/v1/tasks", json=ECHO | body)
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"]


async def task_of(log: EventLog, task_id: TaskId) -> Task:
    task = fold(await log.read_task(task_id))
    assert task is not None
    return task


async def ended(log: EventLog, tasks: list[TaskId]) -> bool:
    return all([(await task_of(log, task_id)).ended for task_id in tasks])


async def events_of(log: EventLog) -> list[tuple[int, str, bytes]]:
    """Return all events of all tasks, with their sequences."""
    found = await get_after(log.connection, TASKS, "bl.task.>", 0)
    return [(message.sequence, message.subject, message.payload) for message in found]


async def queued(log: EventLog) -> Counter[str]:
    """Return how many work messages there are of each task."""
    found = await get_after(log.connection, QUEUE, "bl.queue.>", 0)
    return Counter(message.subject.rpartition(".")[2] for message in found)


async def is_queued(log: EventLog, left: list[TaskId]) -> bool:
    """Whether what was ready to run has one work message each, and what a timer has made so since, at least one."""
    ready = {task_id for task_id in left if (await task_of(log, task_id)).state in {"queued", "running"}}
    timed = set(left[-TIMED:])
    found = await queued(log)
    assert found.keys() == ready, found
    assert {found[task_id] for task_id in ready - timed} == {1}, found
    return True


async def fill(log: EventLog, cluster: Cluster, data_dir: Path) -> tuple[list[TaskId], list[TaskId]]:
    """Have work done on the single server, and leave more of it: ended tasks, and those that have not."""
    gateway = await cluster.gateway(BITINGLIP_DATA_DIR=data_dir)
    worker = await cluster.worker()
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        done = [await submit(client) for _ in range(20)] + [await submit(client, params={"message": BIG})]
        await eventually(lambda: ended(log, done))
        running = await submit(client, params={"steps": 1000, "step_ms": 50})

        async def runs() -> bool:
            return (await task_of(log, running)).state == "running"

        await eventually(runs)
        worker.signal(signal.SIGKILL)
        await worker.wait()
        waiting = [await submit(client) for _ in range(6)]
        later = [await submit(client, delay_s=DELAY_S), await submit(client, delay_s=0.5)]
        cancelled = await submit(client)
        await client.delete(f"/v1/tasks/{cancelled}")
        assert (await client.delete(f"/v1/tasks/{running}")).status_code == 202  # whoever takes it up ends it at once
    await gateway.stop()
    return [*done, cancelled], [running, *waiting, *later]


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_a_single_servers_log_is_moved_to_three(
    one: PrivateServer, three: NatsCluster, stack: AsyncExitStack, tmp_path: Path
) -> None:
    data_dir, folder = tmp_path / "gateway", tmp_path / "backup"
    before_move = await stack.enter_async_context(AsyncExitStack())
    log, parts = await log_on(Nats(url=one.url), before_move), cluster_on(one.url, tmp_path, before_move)
    done, left = await fill(log, parts, data_dir)
    before, histories = await events_of(log), {task_id: await log.read_task(task_id) for task_id in done}
    await before_move.aclose()
    await one.stop()

    await bitinglip("events", "backup", str(folder), BITINGLIP_DATA_DIR=str(tmp_path / "one"))
    await three.start()
    told = await bitinglip("events", "restore", str(folder), "--nats-url", three.url("backup"), **THREE)
    assert "stop all servers of the cluster and start them again" in told
    await three.stop()
    await three.start()

    log = await log_on(Nats(url=three.url("gateway"), replicas=3), stack)
    after = await events_of(log)
    assert after[: len(before)] == before
    parts = cluster_on(three.url("gateway"), tmp_path, stack)
    gateway = await parts.gateway(BITINGLIP_DATA_DIR=data_dir, **THREE)
    await eventually(lambda: is_queued(log, left), within_s=60)
    await parts.worker(BITINGLIP_NATS_URL=three.url("worker"), **THREE)
    await eventually(lambda: ended(log, left), within_s=90)
    for task_id in left:
        assert sum(is_terminal(recorded.event) for recorded in await log.read_task(task_id)) == 1
    assert {task_id: await log.read_task(task_id) for task_id in done} == histories
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        shown = await eventually(lambda: states(client, [*done, *left]), within_s=30)
        assert Counter(shown.values()) == {"succeeded": 21 + 8, "cancelled": 2}
        assert BIG in await artifact_of(client, done[20])
        await goes_on(log, three, client, [*done, *left])


async def states(client: httpx.AsyncClient, tasks: list[TaskId]) -> dict[str, str]:
    """Return the states that the read model tells, once all have ended."""
    answers = [(await client.get(f"/v1/tasks/{task_id}")).json() for task_id in tasks]
    found = {answer["task_id"]: answer["state"] for answer in answers}
    return found if not {"queued", "running", "scheduled"} & set(found.values()) else {}


async def artifact_of(client: httpx.AsyncClient, task_id: TaskId) -> str:
    """Return the artifact that is a task's result."""
    digest = (await client.get(f"/v1/tasks/{task_id}")).json()["result_ref"]["sha256"]
    return (await client.get(f"/v1/artifacts/{digest}")).text


async def goes_on(log: EventLog, servers: NatsCluster, client: httpx.AsyncClient, tasks: list[TaskId]) -> None:
    """Even when all servers die at once, and the queue copies again what came since the move, nothing runs twice."""
    histories = {task_id: await log.read_task(task_id) for task_id in tasks}
    await servers.kill()
    await servers.start()
    task_id = await eventually(lambda: submit(client), within_s=60)
    await eventually(lambda: ended(log, [task_id]), within_s=60)

    async def empty() -> bool:
        return not await queued(log)

    await eventually(empty, within_s=60)
    assert {task_id: await log.read_task(task_id) for task_id in tasks} == histories
