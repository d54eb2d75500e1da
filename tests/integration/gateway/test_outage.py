"""The log goes away and comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.errors import InvalidConfig, NoServer
from bitinglip.events.log import EventLog
from bitinglip.settings import Gateway, Nats, Settings
from tests.integration.gateway.support import ECHO, Player, check_problem, read_stream, register, running, submitted
from tests.support.server import RestartableServer


def settings_for(url: str, folder: Path) -> Settings:
    return Settings(
        data_dir=folder,
        nats=Nats(url=url, append_timeout_s=0.5, connect_timeout_s=1),
        gateway=Gateway(port=0, drain_s=5, sse_heartbeat_s=0.1),
    )


async def test_an_outage_is_told_and_heals(
    restartable_nats: RestartableServer, tmp_path: Path, eventually: Any
) -> None:
    settings = settings_for(restartable_nats.url, tmp_path)
    log = await EventLog.connect(settings.nats, "/test")
    await register(log, "echo", "echo")
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        task_id = await submitted(client)
        assert (await client.get(f"/v1/tasks/{task_id}")).status_code == 200
        async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
            events = read_stream(response)
            assert (await anext(events)).type == "task.submitted"
            await restartable_nats.kill()
            await _check_outage(client, task_id, eventually)
            await restartable_nats.start()
            await eventually(lambda: log.connected)
            await Player(log).run(task_id)
            assert [seen.type async for seen in events] == ["task.assigned", "task.succeeded"]

        async def healed() -> bool:
            return (await client.post("/v1/tasks", json=ECHO)).status_code == 202

        await eventually(healed)
        assert (await client.get("/readyz")).status_code == 200
    await log.close()


async def _check_outage(client: httpx.AsyncClient, task_id: str, eventually: Any) -> None:
    async def not_ready() -> bool:
        return (await client.get("/readyz")).status_code == 503

    await eventually(not_ready)
    assert (await client.get("/healthz")).status_code == 200
    assert "connection" in check_problem(await client.get("/readyz"), 503, "no_server")["detail"]
    for answer in await asyncio.gather(
        client.post("/v1/tasks", json=ECHO),
        client.delete(f"/v1/tasks/{task_id}"),
        client.get(f"/v1/tasks/{task_id}/events"),
        client.get("/v1/queues"),
        client.get(f"/v1/artifacts/{'0' * 64}"),
        client.get("/v1/events"),
    ):
        check_problem(answer, 503, "no_server")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "queued"
    assert "bitinglip_log_connected 0.0" in (await client.get("/metrics")).text


async def test_without_a_log_the_gateway_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(NoServer, match=r"127\.0\.0\.1:1"):
        async with running(settings_for("nats://127.0.0.1:1", tmp_path)):
            pass


async def test_an_address_that_is_taken_is_said(settings: Settings, url: str, tmp_path: Path) -> None:
    port = int(url.rpartition(":")[2])
    gateway = settings.gateway.model_copy(update={"port": port})
    other = settings.model_copy(update={"gateway": gateway, "data_dir": tmp_path / "other"})
    with pytest.raises(InvalidConfig, match=f"127.0.0.1:{port}"):
        async with running(other):
            pass
