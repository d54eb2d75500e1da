"""A queue has an end; what is over it is told when to come again."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.settings import Settings
from tests.integration.gateway.support import ECHO, check_problem, running, submitted

MOST = 5


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A gateway with short queues."""
    return changed(settings, queue_most=MOST)


async def test_a_full_queue_refuses_with_a_time_to_come_again(client: httpx.AsyncClient, log: EventLog) -> None:
    for _ in range(MOST):
        await submitted(client)
    answer = await client.post("/v1/tasks", json=ECHO)
    problem = check_problem(answer, 429, "queue_full")
    assert (problem["limit"], problem["waiting"], problem["asked"]) == (MOST, MOST, 1)
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


async def test_a_request_that_is_refused_counts_for_nothing(client: httpx.AsyncClient, log: EventLog) -> None:
    for _ in range(3):
        await submitted(client)
    batch_lane = ECHO | {"lane": "batch"}
    answer = await client.post("/v1/batches", json={"tasks": [batch_lane] * 3 + [ECHO] * 3})
    assert check_problem(answer, 429, "queue_full")["asked"] == 3
    answer = await client.post("/v1/batches", json={"tasks": [batch_lane] * MOST})
    assert answer.status_code == 202, answer.text
    check_problem(await client.post("/v1/tasks", json=batch_lane), 429, "queue_full")


async def test_a_request_whose_queue_may_not_be_made_counts_for_nothing(settings: Settings, log: EventLog) -> None:
    settings = changed(settings, queues_most=1)
    special = ECHO | {"requires": {"label": "a"}}
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        await submitted(client, special)
        refused = [ECHO] * MOST + [ECHO | {"requires": {"label": "b"}}]
        check_problem(await client.post("/v1/batches", json={"tasks": refused}), 422, "too_many_queues")
        for _ in range(MOST):
            await submitted(client)


async def test_what_is_sent_again_counts_once(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "k"}
    body = {"tasks": [ECHO, ECHO]}
    for _ in range(MOST):
        await submitted(client, headers=headers)
        assert (await client.post("/v1/batches", json=body, headers=headers)).status_code == 202
    for _ in range(MOST - 3):
        await submitted(client)
    check_problem(await client.post("/v1/tasks", json=ECHO), 429, "queue_full")


async def test_the_work_of_a_key_is_bounded_over_all_its_queues(
    settings: Settings, log: EventLog, eventually: Any
) -> None:
    key = "a key of some length"
    settings = changed(settings, api_key=SecretStr(key), key_most=MOST + 2)
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        running(settings) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False, headers=headers) as client,
    ):
        for body in [ECHO] * MOST + [ECHO | {"lane": "batch"}] * 2:
            await submitted(client, body)
        answer = await client.post("/v1/tasks", json=ECHO | {"lane": "interactive"})
        problem = check_problem(answer, 429, "key_full")
        assert (problem["key"], problem["limit"], problem["waiting"]) == ("gateway", MOST + 2, MOST + 2)
        assert problem["longest"][0] == {"lane": "normal", "model": "echo", "waiting": MOST}
        assert int(answer.headers["retry-after"]) >= 1

        async def told() -> bool:
            return f'bitinglip_key_depth{{key_id="gateway"}} {MOST + 2}.0' in (await client.get("/metrics")).text

        await eventually(told)
        await empty(log, Route("normal", encode_queue("echo", WorkClass("gateway"))))

        async def taken() -> bool:
            return (await client.post("/v1/tasks", json=ECHO)).status_code == 202

        await eventually(taken)


async def test_callers_without_a_key_count_as_one(settings: Settings, log: EventLog) -> None:
    settings = changed(settings, queue_most=0, key_most=2)
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        await submitted(client)
        await submitted(client, {"kind": "embedding", "model": "org/vectors@main", "params": {"input": "a"}})
        problem = check_problem(await client.post("/v1/tasks", json=ECHO), 429, "key_full")
        assert problem["key"] is None


def changed(settings: Settings, **gateway: Any) -> Settings:
    """Return settings with another gateway."""
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update=gateway)})


async def empty(log: EventLog, route: Route) -> None:
    """Take all work out of a queue."""
    queue = WorkQueue(log.connection, 30.0)
    await queue.ensure([route])
    for delivery in await queue.pull(route, 100):
        await delivery.ack()
    await queue.close()
