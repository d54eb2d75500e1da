"""Answers about a moment of the past."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, submitted


async def get(client: httpx.AsyncClient, path: str, as_of: object, **params: Any) -> dict[str, Any]:
    response = await client.get(path, params=params | {"as_of": str(as_of)})
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_task_is_answered_as_it_was_at_each_of_its_events(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    first = (await player.task(task_id)).sequence
    assigned = await player.assign(task_id)
    ended = await player.succeed(task_id, text="hi")
    told = {at: await get(client, f"/v1/tasks/{task_id}", at) for at in (first, assigned, ended)}
    assert [task["state"] for task in told.values()] == ["queued", "running", "succeeded"]
    assert [task["last_sequence"] for task in told.values()] == [first, assigned, ended]
    assert [task["as_of"]["sequence"] for task in told.values()] == [first, assigned, ended]
    assert told[assigned]["result"] is None
    now = (await client.get(f"/v1/tasks/{task_id}")).json()
    assert told[ended] == now | {"as_of": told[ended]["as_of"]}


async def test_a_time_is_a_moment_as_well(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    assigned = await player.assign(task_id)
    ended = await player.succeed(task_id)
    found = await get(client, f"/v1/tasks/{task_id}", "now")
    assert (found["state"], found["as_of"]["sequence"]) == ("succeeded", ended)
    stored_at = (await get(client, f"/v1/tasks/{task_id}", assigned))["as_of"]["time"]
    found = await get(client, f"/v1/tasks/{task_id}", stored_at)
    assert (found["state"], found["as_of"]) == ("running", {"time": stored_at, "sequence": assigned})


async def test_what_was_just_written_is_waited_for(client: httpx.AsyncClient, player: Player) -> None:
    for _ in range(5):
        task_id = await submitted(client)
        sequence = await player.run(task_id)
        assert (await get(client, f"/v1/tasks/{task_id}", sequence))["state"] == "succeeded"
        assert (await get(client, f"/v1/tasks/{task_id}", "now"))["state"] == "succeeded"


async def test_lists_of_a_moment_have_filters_and_pages(client: httpx.AsyncClient, player: Player) -> None:
    ids = [await submitted(client, ECHO | {"metadata": {"n": str(n % 2)}}) for n in range(6)]
    moment = (await player.task(ids[-1])).sequence
    for task_id in ids[:4]:
        await player.run(task_id)
    later = await submitted(client)
    params: dict[str, Any] = {"state": "queued", "metadata.n": "1", "limit": 2}
    page = await get(client, "/v1/tasks", moment, **params)
    assert [task["task_id"] for task in page["tasks"]] == [ids[5], ids[3]]
    assert page["as_of"]["sequence"] == moment
    rest = await get(client, "/v1/tasks", moment, **params, cursor=page["next_cursor"])
    assert ([task["task_id"] for task in rest["tasks"]], rest["next_cursor"]) == ([ids[1]], None)
    everything = await get(client, "/v1/tasks", moment)
    assert {task["state"] for task in everything["tasks"]} == {"queued"}
    assert later not in [task["task_id"] for task in everything["tasks"]]


async def test_the_cluster_of_a_moment_is_one_answer(client: httpx.AsyncClient, player: Player, log: EventLog) -> None:
    for event in (WorkerStarted, WorkerHeartbeat):
        await _tell(log, event.model_validate(event.example))
    running, waiting = await submitted(client), await submitted(client)
    await client.post("/v1/queues:pause", json={"model": "org/writer", "lane": "batch"})
    every = {"name": "nightly", "every_s": 3600, "task": ECHO}
    schedule = (await client.post("/v1/schedules", json=every)).json()
    moment = await player.assign(running)
    before = await get(client, "/v1/cluster", "now")
    at = before["as_of"]["time"]
    await player.succeed(running)
    await client.delete(f"/v1/tasks/{waiting}")
    await client.post("/v1/queues:resume", json={"model": "org/writer"})
    await client.delete(f"/v1/schedules/{schedule['schedule_id']}")
    await _tell(log, WorkerStopped.model_validate(WorkerStopped.example))
    found = await get(client, "/v1/cluster", at)
    assert found == before
    assert found["as_of"]["sequence"] == moment
    assert found["tasks"] == {"queued": 1, "running": 1}
    assert [(q["lane"], q["model"], q["waiting"], q["running"], q["paused"]) for q in found["queues"]] == [
        ("batch", "org/writer", 0, 0, True),
        ("normal", "echo", 1, 1, False),
    ]
    assert [(worker["worker_id"], worker["state"], worker["done"]) for worker in found["workers"]] == [
        ("rig-1-0", "started", 117)
    ]
    assert [each["name"] for each in found["schedules"]] == ["nightly"]
    assert {model["id"] for model in found["models"]} == {"echo", "org/writer", "org/vectors@main"}
    now = (await client.get("/v1/cluster")).json()
    assert now["tasks"] == {"cancelled": 1, "succeeded": 1}
    assert (now["workers"][0]["state"], now["schedules"]) == ("stopped", [])
    assert found.keys() == now.keys()


async def test_parts_of_the_cluster_are_answered_alone(client: httpx.AsyncClient, log: EventLog) -> None:
    await _tell(log, WorkerStarted.model_validate(WorkerStarted.example))
    whole = await get(client, "/v1/cluster", "now")
    for path, name in (("queues", "queues"), ("workers", "workers"), ("nodes", "nodes"), ("models", "data")):
        part = await get(client, f"/v1/{path}", whole["as_of"]["time"])
        assert part[name] == whole["models" if name == "data" else name]
        assert part["as_of"] == whole["as_of"]


async def test_moments_that_are_none_are_refused(client: httpx.AsyncClient) -> None:
    task_id = await submitted(client)
    for as_of, code in (
        ("yesterday", "not_a_moment"),
        ("10 ago", "not_a_moment"),
        ("10000000", "moment_to_come"),
        ((datetime.now(UTC) + timedelta(hours=1)).isoformat(), "moment_to_come"),
        ("2001-01-01T00:00:00Z", "moment_before_log"),
        ("0", "moment_before_log"),
    ):
        check_problem(await client.get(f"/v1/tasks/{task_id}", params={"as_of": as_of}), 422, code)
    twice = await client.get(f"/v1/tasks/{task_id}?as_of=1&as_of=2")
    check_problem(twice, 422, "invalid_input")


async def test_a_task_of_later_was_not_there(client: httpx.AsyncClient, player: Player) -> None:
    first = await submitted(client)
    moment = (await player.task(first)).sequence
    later = await submitted(client)
    for task_id in (later, UNKNOWN_ID):
        check_problem(await client.get(f"/v1/tasks/{task_id}", params={"as_of": moment}), 404, "task_not_found")


async def _tell(log: EventLog, event: Any) -> None:
    subject = subjects.worker_subject(event.worker_id, event.type.removeprefix("worker."))
    await log.append(log.fact_append(event, subject, event.worker_id))


@pytest.mark.parametrize("path", ["/v1/tasks", "/v1/workers", "/v1/nodes", "/v1/queues", "/v1/models", "/v1/cluster"])
async def test_an_answer_about_a_moment_says_so_and_one_about_now_is_as_ever(
    client: httpx.AsyncClient, path: str
) -> None:
    assert set((await get(client, path, "now"))["as_of"]) == {"time", "sequence"}
    if path != "/v1/cluster":
        assert "as_of" not in (await client.get(path)).json()


async def test_a_message_that_is_no_event_of_ours_is_passed_over(client: httpx.AsyncClient, log: EventLog) -> None:
    """An envelope as ours, whose data is not what its type has."""
    envelope = {"id": "1", "source": "/s", "time": "2026-12-01T00:00:00Z", "subject": "x", "data": {}}
    for subject, type_ in (("bl.model.x.described", "model.described"), ("bl.schedule.x.created", "schedule.created")):
        document = envelope | {"type": type_, "dataschema": f"urn:bitinglip:{type_}:1"}
        await log.connection.js.publish(subject, orjson.dumps(document))
    for path in ("/v1/models", "/v1/queues", "/v1/cluster"):
        assert (await get(client, path, "now"))["as_of"]
