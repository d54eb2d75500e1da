"""The disk under the log is slow, or does nothing for longer than anybody waits: all goes on, later."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.cli.natsserver import PrivateServer, find_or_fetch
from bitinglip.events.log import EventLog
from bitinglip.settings import Nats
from tests.faults.audit import audit
from tests.faults.harness import ENDS, LEASE_S, Flow, Histories, Plan, differences, findings_of
from tests.integration.gateway.support import ECHO, check_problem
from tests.support.cluster import Cluster
from tests.support.server import eventually
from tests.support.slowdisk import SlowDisk, is_supported

SLOW_S, LATE_S = 0.02, 4.0
"""What a write takes: a second has few of them; leases and requests are over before it is done."""

# skip-ok: nothing else makes a disk slow without rights
needs_slow_disks = pytest.mark.skipif(not is_supported(), reason="needs Linux's seccomp_unotify(2)")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster("", tmp_path)
    yield cluster
    await cluster.close()


@needs_slow_disks
@pytest.mark.timeout(300)
async def test_a_slow_disk_delays_everything_and_loses_nothing(tmp_path: Path, cluster: Cluster) -> None:
    disk = SlowDisk(tmp_path / "disk")
    async with PrivateServer(disk.holds(find_or_fetch()), tmp_path / "nats") as server:
        gateways = [await cluster.gateway(BITINGLIP_NATS_URL=server.url) for _ in range(2)]
        for _ in range(2):
            await cluster.worker(BITINGLIP_NATS_URL=server.url, BITINGLIP_WORKER_LEASE_S=LEASE_S)
        urls = [gateway.ready["url"] for gateway in gateways]
        flow = Flow(Plan(seed=1, tasks=200, seconds=20), urls)
        flowing = asyncio.create_task(flow.run())
        for seconds, long_s in ((SLOW_S, 6), (LATE_S, 12), (SLOW_S, 3), (0, 0)):
            disk.takes(seconds)
            await asyncio.sleep(long_s)  # sleep-ok: the disk is so for a while
        await flowing
        log = await EventLog.connect(Nats(url=server.url), "/checker")
        histories = Histories(log)
        await histories.wait_for_ends(flow.accepted)
        audits = {task_id: audit(history, ENDS) for task_id, history in histories.tasks.items()}
        assert not [*flow.refusals, *findings_of(audits, flow.accepted), *await differences(urls, log, audits)]
        await log.close()


@needs_slow_disks
@pytest.mark.timeout(120)
async def test_a_slow_disk_under_a_read_model_delays_what_is_read_and_nothing_else(
    nats_url: str, tmp_path: Path
) -> None:
    disk = SlowDisk(tmp_path / "disk")
    async with AsyncExitStack() as stack:
        slow = Cluster(nats_url, tmp_path / "slow", python=str(disk.holds(Path(sys.executable))))
        quick = Cluster(nats_url, tmp_path / "quick")
        for cluster in (slow, quick):
            stack.push_async_callback(cluster.close)
        gateway = await slow.gateway()
        await quick.worker()
        client = httpx.AsyncClient(base_url=gateway.ready["url"], timeout=30, trust_env=False)
        await stack.enter_async_context(client)
        disk.takes(math.inf)
        ended = [await client.post("/v1/tasks", json=ECHO, headers={"Prefer": "wait=10"}) for _ in range(20)]
        assert [(each.status_code, each.json()["state"]) for each in ended] == [(200, "succeeded")] * 20
        ids = [each.json()["task_id"] for each in ended]
        check_problem(await client.get(f"/v1/tasks/{ids[-1]}"), 503, "projection_behind")
        disk.takes(0)
        assert [task["task_id"] for task in await eventually(partial(listed, client))] == ids[::-1]


async def listed(client: httpx.AsyncClient) -> list[Any]:
    answer = await client.get("/v1/tasks")
    assert answer.status_code == 200, answer.text
    return answer.json()["tasks"]
