"""Batches: taken whole or not at all, counted by state, completed exactly once whoever watches."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.events.batch import BatchCompleted
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.settings import Settings
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, running
from tests.integration.gateway.test_process import start

Eventually = Callable[..., Awaitable[Any]]
DEFAULTS = {"kind": "echo", "model": "echo"}
WRITER = {"kind": "text-generation", "model": "org/writer"}


def body(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"defaults": DEFAULTS, "tasks": [{"params": {"message": message}} for message in messages]} | more


async def made(client: httpx.AsyncClient, asked: dict[str, Any], headers: dict[str, str] | None = None) -> str:
    response = await client.post("/v1/batches", json=asked, headers=headers)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/v1/batches/{response.json()['batch_id']}"
    return response.json()["batch_id"]


async def shown(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    response = await client.get(f"/v1/batches/{batch_id}")
    assert response.status_code == 200, response.text
    return response.json()


async def members(client: httpx.AsyncClient, batch_id: str) -> list[str]:
    """Return the ids of a batch's tasks."""
    await shown(client, batch_id)
    rows = (await client.get("/v1/tasks", params={"batch": batch_id, "limit": 1000})).json()["tasks"]
    assert {row["batch_id"] for row in rows} <= {batch_id}
    return [row["task_id"] for row in rows]


async def completed(client: httpx.AsyncClient, batch_id: str, eventually: Eventually) -> dict[str, Any]:
    """Return the batch when it is completed."""
    found: dict[str, Any] = {}

    async def check() -> bool:
        found.update(await shown(client, batch_id))
        return found["state"] == "completed"

    await eventually(check)
    return found


async def told(log: EventLog, batch_id: str) -> list[str]:
    """Return the types of all events of a batch; each has a subject of its own, so a second one would be newer."""
    return [recorded.type for recorded in await log.read_latest(TASKS, f"bl.batch.{batch_id}.>")]


async def test_a_batch_is_counted_and_completed_once_by_two_gateways(
    client: httpx.AsyncClient, player: Player, log: EventLog, settings: Settings, tmp_path: Path, eventually: Eventually
) -> None:
    async with running(settings.model_copy(update={"data_dir": tmp_path / "other"})):
        batch_id = await made(client, body("a", "b", "c", "d", name="four", metadata={"team": "x"}))
        ids = await members(client, batch_id)
        first = await shown(client, batch_id)
        assert (first["state"], first["tasks"], first["done"], first["counts"]) == ("closed", 4, 0, {"queued": 4})
        assert (first["name"], first["metadata"]) == ("four", {"team": "x"})
        await player.run(ids[0])
        await player.run(ids[1])
        await player.assign(ids[2])
        await player.fail(ids[2])
        assert (await client.delete(f"/v1/tasks/{ids[3]}")).status_code == 200
        last = await completed(client, batch_id, eventually)
        counts = {"succeeded": 2, "failed": 1, "cancelled": 1}
        assert (last["done"], last["counts"]) == (4, counts)
        other = await made(client, body())  # completed by a later look than the first one's
        await completed(client, other, eventually)
    answer = await client.post(
        "/v1/query", json={"sql": f"select data from events where type = 'batch.completed' and about = '{batch_id}'"}
    )
    assert len(answer.json()["rows"]) == 1
    event = (await log.read_latest(TASKS, f"bl.batch.{batch_id}.completed"))[0].event
    assert isinstance(event, BatchCompleted)
    assert (event.tasks, event.counts) == (4, counts)


async def test_an_empty_batch_is_completed_at_once(client: httpx.AsyncClient, eventually: Eventually) -> None:
    last = await completed(client, await made(client, body()), eventually)
    assert (last["tasks"], last["done"], last["counts"]) == (0, 0, {})


async def test_a_batch_is_completed_though_its_gateway_was_killed(
    nats_url: str, log: EventLog, player: Player, tmp_path: Path, eventually: Eventually
) -> None:
    process = await start(tmp_path / "one", nats_url)
    assert process.stdout is not None
    said = orjson.loads(await process.stdout.readline())
    async with httpx.AsyncClient(base_url=said["url"], timeout=20, trust_env=False) as client:
        batch_id = await made(client, body("a", "b"))
        ids = await members(client, batch_id)
        await player.run(ids[0])
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    await player.run(ids[1])
    assert await told(log, batch_id) == ["batch.opened", "batch.extended", "batch.closed"]
    process = await start(tmp_path / "two", nats_url)
    assert process.stdout is not None
    said = orjson.loads(await process.stdout.readline())
    async with httpx.AsyncClient(base_url=said["url"], timeout=20, trust_env=False) as client:
        assert (await completed(client, batch_id, eventually))["counts"] == {"succeeded": 2}
    process.terminate()
    await process.communicate()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"tasks": [ECHO, WRITER | {"params": {"prompt": "a", "colour": 1}}]}, "tasks.1.params.colour"),
        ({"tasks": [ECHO, ECHO | {"lane": "slow"}]}, "tasks.1.lane"),
        ({"tasks": [ECHO, ECHO | {"depends_on": [UNKNOWN_ID]}]}, "tasks.1.depends_on"),
        ({"tasks": [ECHO], "size": 1}, "size"),
        ({"tasks": [{}] * 10_001}, "tasks"),
    ],
)
async def test_a_wrong_task_is_named_and_none_is_taken(
    client: httpx.AsyncClient, log: EventLog, asked: dict[str, Any], field: str
) -> None:
    problem = check_problem(await client.post("/v1/batches", json=asked), 422, "invalid_input")
    assert problem["field"] == field
    assert await log.last_sequence(TASKS) == 0


async def test_a_repeat_is_the_same_batch(client: httpx.AsyncClient) -> None:
    asked, key = body("a", "b"), {"Idempotency-Key": "k"}
    batch_id = await made(client, asked, key)
    again = await client.post("/v1/batches", json=asked, headers=key)
    assert (again.json()["batch_id"], again.headers["idempotency-replayed"]) == (batch_id, "true")
    assert len(await members(client, batch_id)) == 2
    problem = check_problem(await client.post("/v1/batches", json=body("c"), headers=key), 422, "idempotency_mismatch")
    assert problem["made"] == f"batch {batch_id}"


async def test_batches_are_listed_page_by_page(client: httpx.AsyncClient) -> None:
    ids = [await made(client, body("a"), {"Idempotency-Key": str(number)}) for number in range(3)]
    await shown(client, ids[-1])
    first = (await client.get("/v1/batches", params={"limit": 2})).json()
    rest = (await client.get("/v1/batches", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    listed = [batch["batch_id"] for batch in first["batches"] + rest["batches"]]
    assert (listed, rest["next_cursor"]) == (ids[::-1], None)
    check_problem(await client.get(f"/v1/batches/{UNKNOWN_ID}"), 404, "batch_not_found")
    check_problem(await client.get("/v1/batches/x"), 422, "invalid_input")
