"""Retries of what ended without a result, dead letters, and many tasks at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE
from bitinglip.events.task import Failure
from bitinglip.ids import TaskId
from bitinglip.settings import Settings, Tasks
from bitinglip.tasks.commands import FailAttempt
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, running, submitted

ONCE: dict[str, Any] = {"retry": {"max_attempts": 1}}


async def bury(client: httpx.AsyncClient, player: Player, kind: Any = "engine_crashed", **body: Any) -> str:
    """Return a dead letter."""
    task_id = await submitted(client, ECHO | ONCE | body)
    await player.assign(task_id)
    failure = Failure(kind=kind, message="it broke", retryable=True)
    command = FailAttempt(
        attempt=1, worker_id="w-0", failure=failure, run_ms=1.0, now=player.log.clock(), jitter=0.0
    )  # fmt: skip
    await player._do(task_id, command)  # pyright: ignore[reportPrivateUsage]
    return task_id


async def bulk(client: httpx.AsyncClient, what: str, **body: Any) -> dict[str, Any]:
    response = await client.post(f"/v1/tasks:{what}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def settled(client: httpx.AsyncClient, *task_ids: str) -> list[str]:
    """Return the states of the tasks, with everything that this gateway published about them."""
    return [(await client.get(f"/v1/tasks/{task_id}")).json()["state"] for task_id in task_ids]


async def test_a_dead_letter_is_retried_by_a_new_task_and_only_once(
    client: httpx.AsyncClient, log: EventLog, player: Player
) -> None:
    dead = await bury(client, player, metadata={"team": "a"}, expires_at="2030-01-01T00:00:00Z")
    first = await client.post(f"/v1/tasks/{dead}/retry")
    assert (first.status_code, first.json()["state"], first.json()["retry_of"]) == (202, "queued", dead)
    again = await client.post(f"/v1/tasks/{dead}/retry")
    assert again.json()["task_id"] == first.json()["task_id"]
    assert again.headers["idempotency-replayed"] == "true"
    forced = await client.post(f"/v1/tasks/{dead}/retry", params={"force": "true"})
    assert forced.json()["task_id"] not in {dead, first.json()["task_id"]}
    old, new = [(await client.get(f"/v1/tasks/{i}")).json() for i in (dead, first.json()["task_id"])]
    same = ("kind", "model", "params", "metadata", "lane", "max_attempts", "request_sha256", "expires_at")
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    assert (new["retry_of"], new["state"], old["state"]) == (dead, "queued", "dead_lettered")
    assert old["retried_as"] == [first.json()["task_id"], forced.json()["task_id"]]
    assert new["retried_as"] == []
    assert len(await log.read_task(TaskId(dead))) == 3
    await player.run(new["task_id"])
    check_problem(await client.post(f"/v1/tasks/{new['task_id']}/retry"), 409, "illegal_transition")


async def test_a_big_request_is_retried_with_its_artifact(
    client: httpx.AsyncClient, player: Player, settings: Settings
) -> None:
    dead = await bury(client, player, params={"message": "x" * (settings.log.inline_max_bytes + 1)})
    new = (await client.post(f"/v1/tasks/{dead}/retry")).json()["task_id"]
    old, row = [(await client.get(f"/v1/tasks/{task_id}")).json() for task_id in (dead, new)]
    assert row["params_ref"] == old["params_ref"] != None  # noqa: E711


async def test_what_runs_or_is_not_there_is_not_retried(client: httpx.AsyncClient) -> None:
    task_id = await submitted(client)
    check_problem(await client.post(f"/v1/tasks/{task_id}/retry"), 409, "illegal_transition")
    check_problem(await client.post(f"/v1/tasks/{UNKNOWN_ID}/retry"), 404, "task_not_found")
    check_problem(await client.post(f"/v1/tasks/{task_id}/retry?force=perhaps"), 422, "invalid_input")


async def test_an_expired_task_is_retried_without_its_expiry(client: httpx.AsyncClient, log: EventLog) -> None:
    soon = log.clock() + timedelta(seconds=0.2)
    response = await client.post(
        "/v1/tasks", json=ECHO | {"expires_at": soon.isoformat()}, headers={"Prefer": "wait=5"}
    )  # fmt: skip
    assert response.json()["state"] == "expired"
    new = (await client.post(f"/v1/tasks/{response.json()['task_id']}/retry")).json()["task_id"]
    assert (await client.get(f"/v1/tasks/{new}")).json()["expires_at"] is None


async def test_dead_letters_are_listed_by_model_failure_and_age(client: httpx.AsyncClient, player: Player) -> None:
    crashed, full = await bury(client, player), await bury(client, player, "out_of_memory")
    await player.run(await submitted(client))
    await bulk(client, "retry", state="dead_lettered", dry_run=True)  # after that, a list has all that the log has

    async def found(**params: Any) -> list[str]:
        response = await client.get("/v1/dead-letters", params=params)
        assert response.status_code == 200, response.text
        return [row["task_id"] for row in response.json()["tasks"]]

    now = datetime.now(UTC)
    assert await found() == [full, crashed]
    assert await found(failure="out_of_memory", model="echo", kind="echo") == [full]
    assert await found(model="org/writer") == []
    assert await found(before=(now - timedelta(hours=1)).isoformat()) == []
    assert await found(after=(now - timedelta(hours=1)).isoformat(), limit=1) == [full]
    check_problem(await client.get("/v1/dead-letters", params={"failure": "bad luck"}), 422, "invalid_input")


async def test_all_dead_letters_of_one_failure_are_retried_page_by_page(
    client: httpx.AsyncClient, player: Player
) -> None:
    full = [await bury(client, player, "out_of_memory") for _ in range(3)]
    await bury(client, player)
    asked = {"state": "dead_lettered", "failure": "out_of_memory"}
    dry = await bulk(client, "retry", **asked, dry_run=True)
    assert (dry["matched"], dry["dry_run"], dry["next_cursor"], dry["refused"]) == (3, True, None, [])
    assert dry["task_ids"] == full[::-1]
    first = await bulk(client, "retry", **asked, limit=2)
    assert (first["matched"], first["retried"]) == (2, 2)
    rest = await bulk(client, "retry", **asked, limit=2, cursor=first["next_cursor"])
    assert (rest["retried"], rest["next_cursor"]) == (1, None)
    assert (await bulk(client, "retry", **asked))["already_retried"] == 3


async def test_all_that_waits_for_a_model_is_cancelled(
    client: httpx.AsyncClient, log: EventLog, player: Player
) -> None:
    waiting = [await submitted(client) for _ in range(5)]
    later = await submitted(client, ECHO | {"delay_s": 60})
    other = await submitted(client, ECHO | {"lane": "batch"})
    runs = await submitted(client)
    await player.assign(runs)
    asked = {"model": "echo", "lane": "normal", "reason": "wrong model"}
    assert (await bulk(client, "cancel", **asked, dry_run=True))["matched"] == 7
    answer = await bulk(client, "cancel", **asked)
    assert (answer["cancelled"], answer["cancel_requested"], answer["refused"]) == (6, 1, [])
    assert await settled(client, *waiting, later, other, runs) == ["cancelled"] * 6 + ["queued", "running"]
    assert (await bulk(client, "cancel", state=["queued", "scheduled"], lane="normal"))["matched"] == 0
    assert (await log.connection.js.stream_info(QUEUE)).state.messages == 2


@pytest.mark.parametrize(
    ("what", "body", "field"),
    [
        ("cancel", {}, "body"),
        ("cancel", {"dry_run": True}, "body"),
        ("cancel", {"state": "succeeded"}, "state"),
        ("retry", {"state": "queued"}, "state"),
        ("retry", {"failure": "bad luck"}, "failure"),
        ("retry", {"model": "echo", "cursor": "x"}, "cursor"),
        ("retry", {"model": "echo", "nonsense": 1}, "nonsense"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused(
    client: httpx.AsyncClient, what: str, body: dict[str, Any], field: str
) -> None:
    problem = check_problem(await client.post(f"/v1/tasks:{what}", json=body), 422, "invalid_input")
    assert problem["field"].partition(".")[0] == field


async def test_a_kind_may_have_a_retry_policy_of_its_own(settings: Settings, log: EventLog) -> None:
    own = settings.model_copy(update={"tasks": Tasks(retry=("echo=7/10/20",))})
    async with running(own) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        plain, bent = await submitted(client), await submitted(client, ECHO | {"retry": {"base_ms": 5}})
        writer = {"kind": "text-generation", "model": "org/writer", "params": {"prompt": "Once"}}
        task_ids = (plain, bent, await submitted(client, writer))
    told: list[Any] = [(await log.read_task(TaskId(task_id)))[0].event for task_id in task_ids]
    policies = [(event.retry.max_attempts, event.retry.base_ms, event.retry.max_ms) for event in told]
    assert policies == [(7, 10, 20), (7, 5, 20), (3, 1000, 60_000)]
