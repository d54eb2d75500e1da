"""The line between a part of ours and nats-server is cut, held up and healed; a worker is frozen. The log is asked."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskAssigned, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold, is_terminal
from tests.integration.gateway.support import ECHO, check_problem, read_stream, submitted
from tests.support.cluster import Cluster, Process
from tests.support.proxy import Proxy
from tests.support.server import eventually

LEASE_S = 2
SHORT = {"BITINGLIP_WORKER_LEASE_S": LEASE_S}
PATIENT = {"BITINGLIP_WORKER_LEASE_S": 30}
IMPATIENT = {"BITINGLIP_NATS_APPEND_TIMEOUT_S": 0.5, "BITINGLIP_GATEWAY_SSE_HEARTBEAT_S": 0.2}
STEPS = {"steps": 40, "step_ms": 50}


@pytest.fixture
async def proxy(nats_url: str) -> AsyncIterator[Proxy]:
    port = urlsplit(nats_url).port
    assert port is not None
    async with Proxy(port) as proxy:
        yield proxy


def through(proxy: Proxy, nats_url: str) -> dict[str, str]:
    """The setting with which a process reaches its account through the proxy."""
    return {"BITINGLIP_NATS_URL": f"{nats_url.rpartition(':')[0]}:{proxy.port}"}


async def history_of(log: EventLog, task_id: TaskId) -> list[Recorded]:
    return await log.read_task(task_id)


async def assigned_to(log: EventLog, task_id: TaskId, attempt: int) -> str | None:
    events = [recorded.event for recorded in await history_of(log, task_id)]
    assigned = {event.attempt: event.worker_id for event in events if isinstance(event, TaskAssigned)}
    return assigned.get(attempt)


async def ended(log: EventLog, task_id: TaskId) -> bool:
    return any(is_terminal(recorded.event) for recorded in await history_of(log, task_id))


async def taken_over(
    log: EventLog, cluster: Cluster, first: Process, stop: Callable[[], Any], heal: Callable[[], Any]
) -> None:
    """A worker is out of reach for longer than its lease while it runs a task: another one ends it, and it alone."""
    accepted = await Inbox(log, 65_536).submit(SubmitTask(kind="echo", model="echo", params=STEPS))
    task_id = accepted.task_id
    lost = await eventually(lambda: assigned_to(log, task_id, 1))
    stop()
    await cluster.worker(**SHORT)
    other = await eventually(lambda: assigned_to(log, task_id, 2), within_s=30)
    assert other != lost
    heal()
    await eventually(lambda: "somebody else's" in first.log, within_s=30)
    await eventually(lambda: ended(log, task_id), within_s=30)
    history = await history_of(log, task_id)
    task = fold(history)  # refuses any event out of place
    assert task is not None
    assert (task.state, task.attempt) == ("succeeded", 2)
    assert sum(is_terminal(recorded.event) for recorded in history) == 1
    (end,) = [recorded.event for recorded in history if isinstance(recorded.event, TaskSucceeded)]
    assert (end.attempt, end.worker_id) == (2, other)


async def test_a_worker_cut_off_for_longer_than_its_lease_is_fenced(
    log: EventLog, cluster: Cluster, proxy: Proxy, nats_url: str
) -> None:
    first = await cluster.worker(**SHORT, **through(proxy, nats_url))
    await taken_over(log, cluster, first, proxy.hold, proxy.heal)


async def test_a_worker_frozen_for_longer_than_its_lease_is_fenced(log: EventLog, cluster: Cluster) -> None:
    first = await cluster.worker(**SHORT)
    await taken_over(log, cluster, first, lambda: first.signal(signal.SIGSTOP), lambda: first.signal(signal.SIGCONT))


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_a_partition_that_heals_within_the_lease_costs_no_attempt(
    log: EventLog, cluster: Cluster, proxy: Proxy, nats_url: str, how: str
) -> None:
    first = await cluster.worker(**PATIENT, **through(proxy, nats_url))
    accepted = await Inbox(log, 65_536).submit(SubmitTask(kind="echo", model="echo", params=STEPS))
    await eventually(lambda: assigned_to(log, accepted.task_id, 1))
    await cluster.worker(**PATIENT)
    if how == "cut":
        await proxy.cut()
        await eventually(lambda: "trying to get it back" in first.log)
    else:
        proxy.hold()
        ticks = len(await history_of(log, accepted.task_id))
        await eventually(lambda: stands_still(log, accepted.task_id, ticks))
    proxy.heal()
    await eventually(lambda: ended(log, accepted.task_id), within_s=30)
    task = fold(await history_of(log, accepted.task_id))
    assert task is not None
    assert (task.state, task.attempt) == ("succeeded", 1)


async def stands_still(log: EventLog, task_id: TaskId, ticks: int) -> bool:
    before = len(await history_of(log, task_id))
    await asyncio.sleep(0.3)  # sleep-ok: nothing happens, and that takes time
    return len(await history_of(log, task_id)) == before


async def test_a_gateway_that_is_cut_off_says_so_and_its_streams_go_on_after_it(
    log: EventLog, cluster: Cluster, proxy: Proxy, nats_url: str
) -> None:
    gateway = await cluster.gateway(**through(proxy, nats_url), **IMPATIENT)
    await cluster.worker()
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        task_id = await submitted(client, ECHO | {"params": {"steps": 60, "step_ms": 50}})
        seen: list[int] = []
        async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
            events = read_stream(response)
            seen += [(await anext(events)).id for _ in range(3)]
            await proxy.cut()
            await eventually(lambda: says_not_ready(client))
            answer = await client.post("/v1/tasks", json=ECHO)
            check_problem(answer, 503, "no_server")
            assert int(answer.headers["retry-after"]) >= 1
            proxy.heal()
            seen += [event.id async for event in events]
        await eventually(lambda: says_ready(client))
        await submitted(client)
    assert seen == [recorded.sequence for recorded in await history_of(log, TaskId(task_id))]


async def test_a_connection_that_is_half_open_is_noticed(
    log: EventLog, cluster: Cluster, proxy: Proxy, nats_url: str, tmp_path: Path
) -> None:
    """After three pings without an answer; here they are 0.3 s apart."""
    gateway = await cluster.gateway(**through(proxy, nats_url), **IMPATIENT, BITINGLIP_NATS_PING_S=0.3)
    await cluster.worker()
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        await submitted(client)
        proxy.hold()
        proxy.forsake()
        check_problem(await client.post("/v1/tasks", json=ECHO), 503, "no_server")
        await eventually(lambda: "the connection to the NATS server is back" in gateway.log)
        await eventually(lambda: says_ready(client))
        await submitted(client)


async def says_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 200


async def says_not_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/readyz")).status_code == 503


async def test_what_is_in_hand_stays_so_while_a_worker_gathers(
    log: EventLog, cluster: Cluster, proxy: Proxy, nats_url: str
) -> None:
    """Cut while it waits for more to come: the batch runs once the line is back, not when a lease has ended."""
    await cluster.worker(**PATIENT, **through(proxy, nats_url), BITINGLIP_WORKER_GATHER_MS=1000)
    inbox, echo = Inbox(log, 65_536), SubmitTask(kind="echo", model="echo", params={})
    first = await asyncio.gather(*[inbox.submit(echo) for _ in range(4)])
    for accepted in first:
        await eventually(lambda task_id=accepted.task_id: ended(log, task_id))
    task_id = (await inbox.submit(echo)).task_id

    async def held() -> bool:
        info = await log.connection.js.consumer_info("QUEUE", "normal-echo")
        return info.num_ack_pending == 1 and not await assigned_to(log, task_id, 1)

    await eventually(held)

    async def gathered() -> bool:
        return asyncio.get_running_loop().time() > cut_at + 1.5

    cut_at = asyncio.get_running_loop().time()
    await proxy.cut()
    await eventually(gathered)
    proxy.heal()
    await eventually(lambda: ended(log, task_id), within_s=20)
    assert [recorded.type for recorded in await history_of(log, task_id)] == [
        "task.submitted", "task.assigned", "task.succeeded",
    ]  # fmt: skip
