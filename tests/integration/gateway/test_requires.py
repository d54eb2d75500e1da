"""What a task may require of its worker, and the queues that come of it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from bitinglip.events.log import EventLog
from bitinglip.events.routes import known_routes, listen_for_routes
from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.settings import Settings
from tests.integration.gateway.support import ECHO, check_problem, running, submitted

BIG = {**ECHO, "requires": {"vram_gb": 16, "label": "eu"}}
BIG_QUEUE = encode_queue("echo", WorkClass(vram_gb=16, labels=("eu",)))


async def test_work_that_not_everybody_may_take_has_a_queue_of_its_own(
    client: httpx.AsyncClient, log: EventLog, eventually: Any
) -> None:
    heard: list[Route] = []
    await listen_for_routes(log.connection, heard.append)
    await log.connection.client.flush()
    await log.connection.publish("bl.live.queue.normal.a~b", b"")  # said by a stranger: no queue of ours
    await submitted(client, BIG)
    await submitted(client, BIG)
    assert await known_routes(log.connection) == [Route("normal", BIG_QUEUE)]

    async def told() -> bool:
        return heard == [Route("normal", BIG_QUEUE)]

    async def listed() -> bool:
        (queue,) = (await client.get("/v1/queues")).json()["queues"]
        told = {name: queue[name] for name in ("lane", "model", "key", "requires", "depth")}
        requires = {"vram_gb": 16.0, "label": ["eu"]}
        return told == {"lane": "normal", "model": "echo", "key": None, "requires": requires, "depth": 2}

    await eventually(told)
    await eventually(listed)


async def test_what_is_required_is_in_the_log(client: httpx.AsyncClient, log: EventLog) -> None:
    labels = {**ECHO, "requires": {"label": ["fast", "eu"]}}
    task_id = await submitted(client, labels)
    events = (await client.get(f"/v1/tasks/{task_id}/events", params={"format": "json"})).json()
    assert events[0]["data"]["requires"] == {"vram_gb": 0.0, "labels": ["fast", "eu"]}
    seen = (await client.get(f"/v1/tasks/{task_id}")).json()
    assert (seen["vram_gb"], seen["labels"], seen["queued_reason"]) == (0.0, ["fast", "eu"], None)


@pytest.mark.parametrize(
    ("requires", "field"),
    [
        ({"vram_gb": -1}, "requires.vram_gb"),
        ({"vram": 16}, "requires.vram"),
        ({"label": ""}, "requires.label.0"),
        ({"label": ["x"] * 17}, "requires.label"),
        (["eu"], "requires"),
    ],
)
async def test_a_wrong_requirement_is_named(client: httpx.AsyncClient, requires: Any, field: str) -> None:
    response = await client.post("/v1/tasks", json={**ECHO, "requires": requires})
    assert check_problem(response, 422, "invalid_input")["field"] == field


async def test_there_are_only_so_many_queues(settings: Settings, log: EventLog) -> None:
    gateway = settings.gateway.model_copy(update={"queues_most": 2})
    async with (
        running(settings.model_copy(update={"gateway": gateway})) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client,
    ):
        for label in ("a", "b", "a"):
            await submitted(client, {**ECHO, "requires": {"label": label}})
        third = await client.post("/v1/tasks", json={**ECHO, "requires": {"label": "c"}})
        check_problem(third, 422, "too_many_queues")
        await submitted(client, ECHO)


async def test_each_key_has_its_queues(settings: Settings, log: EventLog) -> None:
    key = "a key of some length"
    gateway = settings.gateway.model_copy(update={"api_key": SecretStr(key)})
    async with (
        running(settings.model_copy(update={"gateway": gateway})) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client,
    ):
        await submitted(client, headers={"Authorization": f"Bearer {key}"})
    assert await known_routes(log.connection) == [Route("normal", encode_queue("echo", WorkClass("gateway")))]


async def test_a_cancelled_task_leaves_its_queue(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    task_id = await submitted(client, BIG)
    assert (await client.delete(f"/v1/tasks/{task_id}")).json()["state"] == "cancelled"

    async def empty() -> bool:
        return (await log.queue_depths()) == {f"normal-{BIG_QUEUE}": 0}

    await eventually(empty)
