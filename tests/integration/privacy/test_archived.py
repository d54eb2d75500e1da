"""Private tasks whose events have left the server: read, repeated, retried and forgotten all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bitinglip.events.keys import find_key, owners
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.settings import Archive, Gateway, Nats, Settings
from tests.integration.gateway.support import Player, check_problem, collect, register, running, submitted
from tests.integration.privacy.support import MARKER, private

SMALL = Archive(every_s=0, settled_s=0, part_events=30, hot_age_s=1e9, hot_tasks=0)
KEY = {"Idempotency-Key": "long ago"}


@pytest.fixture
async def client(log: EventLog, nats_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that keeps nothing on the server that is over."""
    await register(log, "echo", "echo")
    whole = Settings(data_dir=tmp_path, nats=Nats(url=nats_url), gateway=Gateway(port=0), archive=SMALL)
    async with running(whole) as url, httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        yield client


async def trimmed(client: httpx.AsyncClient, log: EventLog) -> str:
    """Return a private task that has failed, and all of whose events have left."""
    task_id = await submitted(client, private(), KEY)
    player = Player(log)
    await player.assign(task_id)
    await player.fail(task_id)
    await collect(client, f"/v1/tasks/{task_id}/events")
    await client.get(f"/v1/tasks/{task_id}")
    assert (await client.post("/v1/log/archive", params={"now": "true"})).status_code == 200
    assert await log.messages(TASKS) == 0
    return task_id


async def test_it_is_read_repeated_and_retried(log: EventLog, client: httpx.AsyncClient) -> None:
    task_id = await trimmed(client, log)
    assert (await client.get(f"/v1/tasks/{task_id}/params")).json() == {"message": MARKER}
    repeated = await client.post("/v1/tasks", json=private(), headers=KEY)
    assert (repeated.json()["task_id"], repeated.headers["idempotency-replayed"]) == (task_id, "true")
    again = (await client.post(f"/v1/tasks/{task_id}/retry")).json()["task_id"]
    assert (await client.get(f"/v1/tasks/{again}")).json()["params"] == {"message": MARKER}


async def test_it_is_forgotten_and_stays_so_through_another_trim(log: EventLog, client: httpx.AsyncClient) -> None:
    task_id = await trimmed(client, log)
    for _ in range(2):
        assert (await client.post(f"/v1/tasks/{task_id}/forget")).status_code == 200
    assert await find_key(log.connection, task_id) is None
    seen = (await client.get(f"/v1/tasks/{task_id}")).json()
    assert (seen["state"], seen["forgotten_at"] is not None, seen["params"]) == ("failed", True, None)
    assert (await client.post("/v1/log/archive", params={"now": "true"})).status_code == 200
    history = (await client.get(f"/v1/tasks/{task_id}/events", params={"format": "json"})).json()
    assert [each["type"] for each in history].count("task.forgotten") == 1
    check_problem(await client.post("/v1/tasks", json=private(), headers=KEY), 410, "task_forgotten")
    check_problem(await client.get(f"/v1/tasks/{task_id}/params"), 410, "task_forgotten")
    assert await owners(log.connection) == []
