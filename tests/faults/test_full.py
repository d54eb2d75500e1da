"""The log's disk is full, by the server's own limit or the system's: what was accepted stays, and it goes on later."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bitinglip.cli.natsserver import PrivateServer, find_or_fetch
from bitinglip.errors import StreamFull, Unavailable
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Accepted, Inbox
from tests.integration.gateway.support import ECHO, check_problem
from tests.support.cluster import Cluster
from tests.support.server import eventually

SMALL = 8 * 2**20
BIG = SubmitTask(kind="echo", model="echo", params={"message": "x" * 60_000})


def server_in(folder: Path, most: int, port: int = 0) -> PrivateServer:
    return PrivateServer(find_or_fetch(), folder / "nats", port=port, max_store_bytes=most)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster("", tmp_path)
    yield cluster
    await cluster.close()


async def fill(log: EventLog) -> tuple[list[Accepted], Unavailable]:
    """Submit until the log takes no more; returns what it took, and why it took no more."""
    inbox, accepted = Inbox(log, 65_536), list[Accepted]()
    try:
        while len(accepted) < 10_000:
            accepted.append(await inbox.submit(BIG))
    except Unavailable as error:
        return accepted, error
    raise AssertionError("the store has no end")


async def test_a_store_at_its_limit_refuses_and_keeps_what_it_has(tmp_path: Path, cluster: Cluster) -> None:
    server = server_in(tmp_path, SMALL)
    await server.start()
    gateway = await cluster.gateway(BITINGLIP_NATS_URL=server.url, BITINGLIP_NATS_MAX_STORE_BYTES=SMALL)
    await cluster.worker(BITINGLIP_NATS_URL=server.url, BITINGLIP_WORKER_LEASE_S=2)
    log = await EventLog.connect(Nats(url=server.url), "/test")
    accepted, refusal = await fill(log)
    assert accepted
    assert isinstance(refusal, StreamFull)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        answer = await client.post("/v1/tasks", json=ECHO | {"params": BIG.params})
        check_problem(answer, 503, "stream_full")
        assert int(answer.headers["retry-after"]) >= 1
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["status"]) == (200, "degraded"), ready.text
        assert "bitinglip_store_limit_ratio" in (await client.get("/metrics")).text
        await server.stop()
        server = server_in(tmp_path, 100 * SMALL, server.port)
        await server.start()
        assert await eventually(lambda: taken(client), within_s=30)
        for one in accepted:
            await eventually(lambda one=one: ended(log, one.task_id), within_s=60)
    await log.close()
    await cluster.close()
    await server.stop()


async def test_a_disk_that_takes_no_more_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    """The system refuses to let the server's files grow (RLIMIT_FSIZE), as a full disk would."""
    server = server_in(tmp_path, 2**30)
    await server.start()
    log = await EventLog.connect(Nats(url=server.url, append_timeout_s=1), "/test")
    accepted = [await Inbox(log, 65_536).submit(BIG) for _ in range(20)]
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (200_000, hard))
    more, _ = await fill(log)
    accepted += more
    assert "file too large" in server.log_file.read_text("utf-8")
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))
    await log.close()
    await server.stop()
    await server.start()
    log = await EventLog.connect(Nats(url=server.url), "/test")
    for one in accepted:
        assert [recorded.type for recorded in await log.read_task(one.task_id)] == ["task.submitted"]
    await eventually(lambda: all_queued(log, accepted), within_s=30)
    await log.close()
    await server.stop()


async def all_queued(log: EventLog, accepted: list[Accepted]) -> bool:
    """Whether each accepted task waits in the queue; one whose ack got lost may wait there as well."""
    state = (await log.connection.js.stream_info(QUEUE, subjects_filter="bl.queue.>")).state
    waiting = {subject.rpartition(".")[2] for subject in state.subjects or {}}
    return {one.task_id for one in accepted} <= waiting


async def taken(client: httpx.AsyncClient) -> bool:
    return (await client.post("/v1/tasks", json=ECHO)).status_code == 202


async def ended(log: EventLog, task_id: TaskId) -> bool:
    last = await log.read_last("TASKS", f"bl.task.{task_id}.succeeded")
    return last is not None
