"""Archiving and trimming while gateways and the server are killed: each lasting event stays, in one place at least."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.cli.natsserver import PrivateServer, find_or_fetch
from bitinglip.errors import StreamFull
from bitinglip.events import archive
from bitinglip.events.log import EventLog
from bitinglip.events.streams import ARCHIVE_BUCKET, LEDGER, TASKS
from bitinglip.projections.archivefile import messages_of
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold
from tests.faults.test_cluster import leader_of
from tests.faults.test_full import fill
from tests.integration.gateway.support import Player, check_problem
from tests.support.cluster import Cluster, Process
from tests.support.natscluster import NatsCluster
from tests.support.server import RestartableServer, eventually

ECHO = SubmitTask(kind="echo", model="echo")
EAGER: dict[str, Any] = {
    "BITINGLIP_ARCHIVE_EVERY_S": 0.05,
    "BITINGLIP_ARCHIVE_SETTLED_S": 0,
    "BITINGLIP_ARCHIVE_PART_EVENTS": 7,
    "BITINGLIP_ARCHIVE_HOT_TASKS": 0,
}


async def in_archive(log: EventLog, folder: Path) -> list[int]:
    """Return the sequences of all that is archived, each file read back and compared with the index."""
    found: list[int] = []
    for file in await archive.index(log.connection, TASKS):
        await archive.fetch(log.connection, file, folder / "file.parquet")
        found += [message.sequence for batch in messages_of(folder / "file.parquet") for message in batch]
    return found


async def in_stream(log: EventLog, up_to: int) -> set[int]:
    """Return the sequences of all that the server holds, and 0."""
    found = {0}
    while (after := max(found)) < up_to and (first := await log.first_after(TASKS, after)):
        found.add(min(message.sequence for message in first))
    return found


@pytest.mark.timeout(300)
async def test_no_event_is_lost_whoever_is_killed(tmp_path: Path, closing: AsyncExitStack) -> None:
    server, cluster, chance = RestartableServer(tmp_path / "nats"), Cluster("", tmp_path), random.Random(20261129)
    closing.push_async_callback(server.stop)
    closing.push_async_callback(cluster.close)
    await server.start()
    log = await EventLog.connect(Nats(url=server.url, append_timeout_s=30.0), "/test")
    closing.push_async_callback(log.close)
    inbox, player, stored = Inbox(log, 65_536), Player(log), set[int]()
    env = EAGER | {"BITINGLIP_NATS_URL": server.url}
    gateways: list[Process] = [await cluster.gateway(**env) for _ in range(2)]
    for strike in range(8):
        for _ in range(chance.randrange(5, 15)):
            accepted = await inbox.submit(ECHO)
            stored |= {accepted.sequence, await player.assign(accepted.task_id), await player.succeed(accepted.task_id)}
        struck = chance.choice(gateways)
        await struck.kill()
        if strike % 3 == 2:
            await server.kill()
            await server.start()
        await struck.start()
        held = await in_stream(log, max(stored))  # before the archive: what leaves meanwhile is there
        archived = await eventually(lambda: in_archive(log, tmp_path), within_s=30)
        assert len(archived) == len(set(archived))
        assert stored <= set(archived) | held
    async with httpx.AsyncClient(base_url=gateways[0].ready["url"], timeout=30, trust_env=False) as client:

        async def all_archived() -> bool:
            answer = await client.post("/v1/log/archive", params={"now": "true"})
            return answer.status_code == 200 and await log.messages(TASKS) == 0

        await eventually(all_archived, within_s=60)
        assert await in_archive(log, tmp_path) == sorted(stored)
    last = await cluster.gateway(**env)
    async with httpx.AsyncClient(base_url=last.ready["url"], timeout=30, trust_env=False) as client:

        async def has_all() -> bool:
            answer = await client.post(
                "/v1/query", json={"sql": "select count(*) from tasks where state = 'succeeded'"}
            )
            return answer.json()["rows"] == [[len(stored) // 3]]

        await eventually(has_all, within_s=30)


@pytest.mark.timeout(300)
async def test_no_event_is_lost_whichever_of_three_servers_is_killed(tmp_path: Path, closing: AsyncExitStack) -> None:
    """A server that was away has less than the others, and may be asked for what it has."""
    servers, chance = NatsCluster(tmp_path / "nats"), random.Random(20261130)
    cluster = Cluster(servers.url("gateway"), tmp_path)
    closing.push_async_callback(servers.kill)
    closing.push_async_callback(cluster.close)
    await servers.start()
    log, worker = [
        await EventLog.connect(Nats(url=servers.url(user), replicas=3, append_timeout_s=30.0), f"/test/{user}")
        for user in ("gateway", "worker")
    ]
    closing.push_async_callback(log.close)
    closing.push_async_callback(worker.close)
    inbox, player, stored, played = Inbox(log, 65_536), Player(worker), set[int](), 0
    gateways = [await cluster.gateway(**EAGER | {"BITINGLIP_NATS_REPLICAS": 3}) for _ in range(2)]

    async def play(number: int) -> None:
        """Bring a task from its submission to its end, whatever is tried again meanwhile."""
        accepted = await eventually(lambda: inbox.submit(ECHO, idempotency_key=f"play-{number}"), within_s=60)
        stored.add(accepted.sequence)
        ending = False

        async def ended() -> bool:
            nonlocal ending
            task = fold(await log.read_task(accepted.task_id))
            if task is None:  # it is over and has left, or whoever was asked has yet to hear of it
                return ending
            if not task.ended:
                ending = task.state == "running"
                stored.add(await (player.succeed if ending else player.assign)(accepted.task_id))
            return task.ended

        await eventually(ended, within_s=60)

    for strike, stream in enumerate((TASKS, LEDGER, f"OBJ_{ARCHIVE_BUCKET}")):
        before, after = chance.randrange(5, 15), chance.randrange(5, 15)
        for number in range(before + after):
            if number == before:
                await servers.nodes[await leader_of(log, stream)].kill()
            await play(played + number)
        played += before + after
        if strike % 2:
            await gateways[0].kill()
            await gateways[0].start()
        await servers.start()
        held = await eventually(lambda: in_stream(log, max(stored)), within_s=60)
        archived = await eventually(lambda: in_archive(log, tmp_path), within_s=60)
        assert len(archived) == len(set(archived))
        assert stored <= set(archived) | held
    async with httpx.AsyncClient(base_url=gateways[1].ready["url"], timeout=30, trust_env=False) as client:

        async def all_archived() -> bool:
            answer = await client.post("/v1/log/archive", params={"now": "true"})
            return answer.status_code == 200 and await log.messages(TASKS) == 0

        await eventually(all_archived, within_s=60)
    archived = await in_archive(log, tmp_path)
    assert stored <= set(archived)
    assert len(archived) == len(set(archived)) == 3 * played


async def test_a_full_store_drops_nothing_and_is_told(tmp_path: Path, closing: AsyncExitStack) -> None:
    most = 8 * 2**20
    server = PrivateServer(find_or_fetch(), tmp_path / "nats", port=0, max_store_bytes=most)
    await server.start()
    closing.push_async_callback(server.stop)
    cluster = Cluster("", tmp_path)
    closing.push_async_callback(cluster.close)
    env = EAGER | {"BITINGLIP_NATS_URL": server.url, "BITINGLIP_NATS_MAX_STORE_BYTES": most}
    gateway = await cluster.gateway(**env | {"BITINGLIP_ARCHIVE_EVERY_S": 0})
    log = await EventLog.connect(Nats(url=server.url), "/test")
    closing.push_async_callback(log.close)
    accepted, refusal = await fill(log)
    assert isinstance(refusal, StreamFull)
    held = await log.messages(TASKS)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=30, trust_env=False) as client:
        check_problem(await client.post("/v1/log/archive", params={"now": "true"}), 503, "stream_full")
        assert await log.messages(TASKS) == held == len(accepted)
        assert await archive.index(log.connection, TASKS) == []
        shown = (await client.get("/v1/log/archive", params={"stream": "tasks"})).json()["streams"][0]
        assert shown["behind_events"] == held
        metrics = (await client.get("/metrics")).text
        assert f'bitinglip_archive_behind_events{{stream="TASKS"}} {float(held)}' in metrics
