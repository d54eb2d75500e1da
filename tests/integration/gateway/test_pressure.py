"""A queue has an end; what is over it is told when to come again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import Route
from bitinglip.settings import Settings
from tests.integration.gateway.support import ECHO, check_problem, running, submitted

MOST = 5


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A gateway with short queues."""
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"queue_most": MOST})})


async def test_a_full_queue_refuses_with_a_time_to_come_again(client: httpx.AsyncClient, log: EventLog) -> None:
    for _ in range(MOST):
        await submitted(client)
    answer = await client.post("/v1/tasks", json=ECHO)
    problem = check_problem(answer, 429, "queue_full")
    assert problem["limit"] == MOST
    assert int(answer.headers["retry-after"]) >= 1
    await submitted(client, ECHO | {"lane": "batch"})  # another queue
    assert await log.last_sequence("TASKS") == MOST + 1


async def test_it_takes_more_when_there_is_room(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    queue = WorkQueue(log.connection, 30.0)
    route = Route("normal", "echo")
    await queue.ensure([route])

    async def refused() -> bool:
        return (await client.post("/v1/tasks", json=ECHO)).status_code == 429

    await eventually(refused)
    for delivery in await queue.pull(route, 100):
        await delivery.ack()

    async def taken() -> bool:
        return (await client.post("/v1/tasks", json=ECHO)).status_code == 202

    await eventually(taken)
    await queue.close()


async def test_what_other_gateways_took_counts(
    client: httpx.AsyncClient, log: EventLog, settings: Settings, tmp_path: Any, eventually: Any
) -> None:
    queue = WorkQueue(log.connection, 30.0)
    await queue.ensure([Route("normal", "echo")])
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with running(other) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as neighbour:
        for _ in range(MOST):
            await submitted(neighbour)

        async def refused() -> bool:
            return (await client.post("/v1/tasks", json=ECHO)).status_code == 429

        await eventually(refused)
    await queue.close()
