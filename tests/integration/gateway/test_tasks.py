"""GET /v1/tasks, and GET and DELETE /v1/tasks/{task_id}."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, submitted

WRITE: dict[str, Any] = {"kind": "text-generation", "model": "org/writer", "params": {"prompt": "Once"}}


async def listed(client: httpx.AsyncClient, *params: tuple[str, str]) -> list[str]:
    response = await client.get("/v1/tasks", params=list(params))
    assert response.status_code == 200, response.text
    return [task["task_id"] for task in response.json()["tasks"]]


# --- one task ---------------------------------------------------------------------------------------------------------


async def test_a_task_can_be_read_at_once(client: httpx.AsyncClient) -> None:
    for number in range(20):
        task_id = await submitted(client, ECHO | {"params": {"message": number}, "metadata": {"n": str(number)}})
        task = (await client.get(f"/v1/tasks/{task_id}")).json()
        assert (task["task_id"], task["state"], task["kind"], task["lane"]) == (task_id, "queued", "echo", "normal")
        assert (task["params"], task["metadata"]) == ({"message": number}, {"n": str(number)})


async def test_a_task_shows_its_result(client: httpx.AsyncClient, player: Player, eventually: Any) -> None:
    task_id = await submitted(client)
    await player.run(task_id, message="hello")

    async def ended() -> Any:
        task = (await client.get(f"/v1/tasks/{task_id}")).json()
        return task if task["state"] == "succeeded" else None

    task = await eventually(ended)
    assert (task["result"], task["attempt"], task["worker_id"]) == ({"message": "hello"}, 1, "w-0")
    assert task["output_tokens"] == 3
    assert task["submitted_at"].endswith("Z")


async def test_a_task_that_came_another_way_can_be_read_at_once(client: httpx.AsyncClient, log: EventLog) -> None:
    accepted = await Inbox(log, 65_536).submit(SubmitTask(kind="echo", model="echo"))
    assert (await client.get(f"/v1/tasks/{accepted.task_id}")).status_code == 200


async def test_an_unknown_task_is_not_found(client: httpx.AsyncClient) -> None:
    assert check_problem(await client.get(f"/v1/tasks/{UNKNOWN_ID}"), 404, "task_not_found")["task_id"] == UNKNOWN_ID
    check_problem(await client.delete(f"/v1/tasks/{UNKNOWN_ID}"), 404, "task_not_found")
    check_problem(await client.get(f"/v1/tasks/{UNKNOWN_ID}/events"), 404, "task_not_found")


@pytest.mark.parametrize(
    "task_id", ["x", "*", "%3E", "a.b", UNKNOWN_ID.lower(), UNKNOWN_ID + "0", "8" * 26, "%00", "é"]
)
async def test_an_id_that_is_none_is_refused(client: httpx.AsyncClient, task_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        response = await client.request(method, f"/v1/tasks/{task_id}{path}")
        assert check_problem(response, 422, "invalid_input")["field"] == "task_id"


# --- cancel -----------------------------------------------------------------------------------------------------------


async def test_a_queued_task_is_cancelled_at_once(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    response = await client.delete(f"/v1/tasks/{task_id}", params={"reason": "changed my mind"})
    assert (response.status_code, response.json()["state"]) == (200, "cancelled")
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "cancelled"
    assert (await player.task(task_id)).state == "cancelled"
    again = await client.delete(f"/v1/tasks/{task_id}")
    assert (again.status_code, again.json()["state"]) == (200, "cancelled")


async def test_a_running_task_is_asked_to_stop(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    await player.assign(task_id)
    response = await client.delete(f"/v1/tasks/{task_id}")
    assert (response.status_code, response.json()["state"]) == (202, "running")
    assert response.json()["cancel_requested"] is True
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["cancel_requested"] is True
    await player.stop(task_id)
    assert (await client.delete(f"/v1/tasks/{task_id}")).status_code == 200


async def test_a_task_that_has_ended_otherwise_is_not_cancelled(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    await player.run(task_id)
    problem = check_problem(await client.delete(f"/v1/tasks/{task_id}"), 409, "illegal_transition")
    assert problem["state"] == "succeeded"


async def test_a_reason_is_short(client: httpx.AsyncClient) -> None:
    response = await client.delete(f"/v1/tasks/{UNKNOWN_ID}", params={"reason": "x" * 513})
    assert check_problem(response, 422, "invalid_input")["field"] == "reason"


# --- lists ------------------------------------------------------------------------------------------------------------


async def test_tasks_are_listed_by_what_they_are(client: httpx.AsyncClient, player: Player) -> None:
    first = await submitted(client, ECHO | {"lane": "batch", "metadata": {"team": "a"}})
    second = await submitted(client, WRITE | {"metadata": {"team": "b"}})
    third = await submitted(client)
    await client.delete(f"/v1/tasks/{third}")
    await client.get(f"/v1/tasks/{third}")
    assert await listed(client) == [third, second, first]
    assert await listed(client, ("state", "queued")) == [second, first]
    assert await listed(client, ("state", "queued,cancelled"), ("lane", "normal")) == [third, second]
    assert await listed(client, ("state", "cancelled"), ("state", "queued")) == [third, second, first]
    assert await listed(client, ("kind", "text-generation")) == [second]
    assert await listed(client, ("model", "echo")) == [third, first]
    assert await listed(client, ("lane", "batch")) == [first]
    assert await listed(client, ("metadata.team", "b")) == [second]
    assert await listed(client, ("metadata.team", "' or 1=1 --")) == []
    at = (await client.get(f"/v1/tasks/{second}")).json()["submitted_at"]
    assert await listed(client, ("submitted_after", at)) == [third]
    assert await listed(client, ("submitted_before", at)) == [first]


async def test_a_long_list_comes_in_pages(client: httpx.AsyncClient) -> None:
    made = [await submitted(client) for _ in range(7)]
    await client.get(f"/v1/tasks/{made[-1]}")
    found: list[str] = []
    params: dict[str, str] = {"limit": "3"}
    sizes: list[int] = []
    while True:
        page = (await client.get("/v1/tasks", params=params)).json()
        found += [task["task_id"] for task in page["tasks"]]
        sizes.append(len(page["tasks"]))
        if page["next_cursor"] is None:
            break
        params["cursor"] = page["next_cursor"]
    assert found == made[::-1]
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("state", "sleeping"),
        ("state", "queued,sleeping"),
        ("kind", "painting"),
        ("lane", "fast"),
        ("limit", "-1"),
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "many"),
        ("limit", "1e2"),
        ("limit", "9" * 40),
        ("submitted_after", "yesterday"),
        ("submitted_before", "2026-01-01T00:00:00"),
        ("cursor", "nonsense"),
        ("cursor", "' or 1=1 --"),
        ("metadata.", "x"),
        ("sort", "asc"),
    ],
)
async def test_a_bad_parameter_is_named(client: httpx.AsyncClient, name: str, value: str) -> None:
    response = await client.get("/v1/tasks", params={name: value})
    assert check_problem(response, 422, "invalid_input")["field"] == name


async def test_a_parameter_is_given_once(client: httpx.AsyncClient) -> None:
    response = await client.get("/v1/tasks", params=[("kind", "echo"), ("kind", "embedding")])
    assert check_problem(response, 422, "invalid_input")["field"] == "kind"
