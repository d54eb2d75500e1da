"""A server whose store can be searched, with a gateway and a worker as processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.settings import Nats
from tests.integration.privacy.support import House
from tests.support.cluster import Cluster
from tests.support.server import RestartableServer


@pytest.fixture
async def house(restartable_nats: RestartableServer, tmp_path: Path) -> AsyncIterator[House]:
    """The processes, and all the files that they write."""
    cluster = Cluster(restartable_nats.url, tmp_path)
    gateway, worker = await cluster.gateway(), await cluster.worker(BITINGLIP_DATA_DIR=tmp_path / "worker")
    log = await EventLog.connect(Nats(url=restartable_nats.url), "/test")
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        house = House(restartable_nats, cluster, gateway, worker, log, client, tmp_path)
        yield house
    if not house.stopped:
        await log.close()
    await cluster.close()
