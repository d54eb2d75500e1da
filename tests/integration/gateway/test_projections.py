"""The routes about the read model: what there is, making it anew, copies; and how its troubles look from outside."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import httpx

from bitinglip.events.log import EventLog
from bitinglip.ids import TaskId
from bitinglip.projections import sql
from bitinglip.settings import Settings
from tests.integration.gateway.support import ECHO, check_problem, running, submitted


async def ready(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get("/readyz")).json()


async def test_each_projection_is_told_of(client: httpx.AsyncClient, eventually: Any) -> None:
    await submitted(client)

    async def told() -> Any:
        found = {each["projection"]: each for each in (await client.get("/v1/projections")).json()["projections"]}
        return found if found["tasks"]["checkpoint"]["TASKS"] else None

    found = await eventually(told)
    assert found.keys() == sql.CATALOGUE.keys()
    tasks = found["tasks"]
    assert (tasks["state"], tasks["current"], tasks["rows"]) == ("serving", True, {"tasks": 1, "setbacks": 0})
    assert tasks["version"] == sql.CATALOGUE["tasks"].version
    assert tasks["checkpoint"] == tasks["target"]


async def test_one_is_made_anew(client: httpx.AsyncClient, eventually: Any) -> None:
    task_id = await submitted(client)
    response = await client.post("/v1/projections/rebuild", json={"projection": "tasks"})
    assert response.status_code == 202
    assert [each["state"] for each in response.json()["projections"]][-1] == "building"

    async def made() -> bool:
        found = (await client.get("/v1/projections")).json()["projections"]
        return all(each["state"] == "serving" for each in found)

    await eventually(made)
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "queued"


async def test_what_is_asked_must_make_sense(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/projections/rebuild", json={"projection": "nothing"})
    check_problem(response, 404, "projection_not_found")
    check_problem(await client.post("/v1/projections/rebuild", json={"all": True}), 422, "invalid_input")


async def test_another_gateway_begins_with_a_copy(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    task_id = await submitted(client)
    await client.get(f"/v1/tasks/{task_id}")
    response = await client.post("/v1/projections/snapshot")
    assert response.status_code == 201
    assert response.json()["checkpoints"]["TASKS"] == 1
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with running(other) as url, httpx.AsyncClient(base_url=url, trust_env=False) as second:
        assert (await second.get(f"/v1/tasks/{task_id}")).json()["state"] == "queued"


async def test_what_is_no_event_is_counted_and_told(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    assert "corrupt_events" not in await eventually(lambda: ready(client))
    await log.connection.js.publish(f"bl.task.{TaskId(log.ids())}.submitted.normal.x", b"\xff not json")
    await log.connection.js.publish(f"bl.task.{TaskId(log.ids())}.assigned", b'{"foreign": true}')
    await client.get(f"/v1/tasks/{await submitted(client)}")

    async def told() -> Any:
        return (await ready(client)).get("corrupt_events") == "TASKS: 2"

    await eventually(told)
    assert 'bitinglip_corrupt_events_total{stream="TASKS"} 2.0' in (await client.get("/metrics")).text


async def test_a_full_disk_shows_and_passes(client: httpx.AsyncClient, settings: Settings, eventually: Any) -> None:
    await client.get(f"/v1/tasks/{await submitted(client)}")

    async def well() -> bool:
        return (await ready(client)).get("status") == "ready"

    await eventually(well)
    wal = settings.projections_path.with_name(settings.projections_path.name + ".wal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + 100, before[1]))
    try:
        await client.post("/v1/tasks", json=ECHO | {"params": {"message": "x" * 20_000}})

        async def degraded() -> bool:
            told = await ready(client)
            return told.get("status") == "degraded" and "File too large" in told["read_model"]

        await eventually(degraded)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    await eventually(well)

    async def both() -> bool:
        return len((await client.get("/v1/tasks")).json()["tasks"]) == 2

    await eventually(both)
