"""The archive behind a gateway: files, the window, and everything that a caller can still ask of what has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.settings import Archive, Gateway, Nats, Settings
from tests.integration.gateway.support import ECHO, Player, collect, running, submitted
from tests.support.server import eventually

SMALL = Archive(every_s=0, settled_s=0, part_events=30, hot_age_s=1e9, hot_tasks=0)


def settings_of(nats_url: str, folder: Path, archive: Archive = SMALL) -> Settings:
    return Settings(
        data_dir=folder, nats=Nats(url=nats_url), gateway=Gateway(port=0), archive=archive
    )


@pytest.fixture
async def gateway(log: EventLog, nats_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with running(settings_of(nats_url, tmp_path / "first")) as url, httpx.AsyncClient(base_url=url, timeout=30.0) as client:
        yield client


async def finished(client: httpx.AsyncClient, player: Player, count: int) -> list[str]:
    """Submit tasks and bring them to their end."""
    made = [await submitted(client) for _ in range(count)]
    await asyncio.gather(*[player.run(task_id, text=task_id) for task_id in made])
    return made


async def archived(client: httpx.AsyncClient, **params: str) -> dict[str, Any]:
    response = await client.post("/v1/log/archive", params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_what_is_over_leaves_and_can_still_be_asked_for(
    log: EventLog, gateway: httpx.AsyncClient
) -> None:
    player = Player(log)
    made = await finished(gateway, player, 20)
    waiting = await submitted(gateway)
    before = [(await gateway.get(f"/v1/tasks/{task_id}")).json() for task_id in made]
    history = await collect(gateway, f"/v1/tasks/{made[3]}/events")
    done = await archived(gateway, now="true")
    assert [file["events"] for file in done["archived"] if file["stream"] == TASKS] == [30, 30, 1]
    assert done["trimmed"]["removed"] == 60
    assert await log.messages(TASKS) == 1
    assert [(await gateway.get(f"/v1/tasks/{task_id}")).json() for task_id in made] == before
    assert await collect(gateway, f"/v1/tasks/{made[3]}/events") == history
    await player.run(waiting)
    assert (await gateway.get(f"/v1/tasks/{waiting}")).json()["state"] == "succeeded"
