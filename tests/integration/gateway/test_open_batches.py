"""Batches that are added to: by lists and by lines, from several sides, against their closing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.errors import NoServer
from bitinglip.events.appending import Append
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.gateway import batches as routes
from bitinglip.ids import Sequence
from bitinglip.settings import Settings
from bitinglip.tasks import batches
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, running
from tests.integration.gateway.test_batches import completed, made, members, shown

Eventually = Callable[..., Awaitable[Any]]
LINES = {"Content-Type": "application/x-ndjson"}


def echoes(*messages: Any) -> list[dict[str, Any]]:
    return [ECHO | {"params": {"message": message}} for message in messages]


async def opened(client: httpx.AsyncClient, *messages: Any, key: str | None = None) -> str:
    asked = {"open": True, "tasks": echoes(*messages)}
    return await made(client, asked, {"Idempotency-Key": key} if key else None)


async def add(client: httpx.AsyncClient, batch_id: str, *messages: Any, key: str | None = None) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    return await client.post(f"/v1/batches/{batch_id}/tasks", json=echoes(*messages), headers=headers)


async def close(client: httpx.AsyncClient, batch_id: str) -> dict[str, Any]:
    response = await client.post(f"/v1/batches/{batch_id}:close")
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_batch_is_opened_added_to_closed_and_completed(
    client: httpx.AsyncClient, player: Player, eventually: Eventually
) -> None:
    batch_id = await opened(client)
    first = await shown(client, batch_id)
    assert (first["state"], first["tasks"], first["counts"], first["closed_at"]) == ("open", 0, {}, None)
    answer = await add(client, batch_id, "a", "b")
    assert answer.status_code == 202
    assert {name: answer.json()[name] for name in ("added", "tasks", "state")} == {
        "added": 2, "tasks": 2, "state": "open",
    }  # fmt: skip
    for task_id in await members(client, batch_id):
        await player.run(task_id)
    assert (await add(client, batch_id, "c")).json()["tasks"] == 3
    waiting = await shown(client, batch_id)
    assert (waiting["state"], waiting["done"], waiting["counts"]) == ("open", 2, {"queued": 1, "succeeded": 2})
    assert ((await close(client, batch_id))["state"], (await shown(client, batch_id))["tasks"]) == ("closed", 3)
    await player.run((await members(client, batch_id))[0])
    assert (await completed(client, batch_id, eventually))["counts"] == {"succeeded": 3}
    assert (await close(client, batch_id))["state"] == "completed"


async def test_a_closed_batch_takes_no_more(client: httpx.AsyncClient, log: EventLog) -> None:
    batch_id = await opened(client, "a")
    closed = await close(client, batch_id)
    assert (await close(client, batch_id))["sequence"] == closed["sequence"]
    problem = check_problem(await add(client, batch_id, "b"), 409, "batch_is_closed")
    assert (problem["batch_id"], problem["taken"]) == (batch_id, 0)
    assert len(await members(client, batch_id)) == 1


async def test_lines_are_read_as_they_come(client: httpx.AsyncClient) -> None:
    batch_id = await opened(client)

    async def lines() -> AsyncIterator[bytes]:
        for number in range(300):
            text = orjson.dumps(ECHO | {"params": {"message": f"é{number}"}})
            for piece in (text[:40], text[40:], b"\r\n" if number % 2 else b"\n\n"):
                yield piece
        yield orjson.dumps(ECHO)

    answer = await client.post(f"/v1/batches/{batch_id}/tasks", content=lines(), headers=LINES)
    assert (answer.status_code, answer.json()["added"], answer.json()["tasks"]) == (202, 301, 301)
    await shown(client, batch_id)
    page = (await client.get("/v1/tasks", params={"batch": batch_id, "limit": 302})).json()["tasks"]
    said = [row["params"]["message"] for row in page]
    assert said == ["hello", *[f"é{number}" for number in range(299, -1, -1)]]


@pytest.mark.parametrize(
    ("content", "headers", "status", "code", "said"),
    [
        (orjson.dumps(ECHO) + b"\n{", LINES, 400, "malformed_body", "line 2"),
        (orjson.dumps(ECHO) + b'\n{"kind": "echo"}', LINES, 422, "invalid_input", "tasks.1."),
        (b"\n\n", LINES, 422, "invalid_input", "tasks"),
        (b"x" * 5_000_000, LINES, 413, "payload_too_large", "body"),
        (orjson.dumps(ECHO) + b"\n", {"Content-Type": "text/plain"}, 415, "unsupported_media_type", "text/plain"),
        (orjson.dumps(ECHO), {"Content-Type": "application/json"}, 422, "invalid_input", "body"),
        (orjson.dumps([ECHO, 1]), {"Content-Type": "application/json"}, 422, "invalid_input", "tasks.1"),
        (orjson.dumps(echoes(*"abcd")), {"Content-Type": "application/json"}, 422, "invalid_input", "more than 3"),
    ],
)
async def test_a_request_with_a_wrong_task_adds_none(
    client: httpx.AsyncClient,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(routes, "TASKS_MOST", 3)
    batch_id = await opened(client)
    response = await client.post(f"/v1/batches/{batch_id}/tasks", content=content, headers=headers)
    assert said in check_problem(response, status, code)["detail"]
    assert (await shown(client, batch_id))["tasks"] == 0


async def test_there_is_nothing_to_add_to_or_close(client: httpx.AsyncClient) -> None:
    check_problem(await add(client, UNKNOWN_ID, "a"), 404, "batch_not_found")
    check_problem(await client.post(f"/v1/batches/{UNKNOWN_ID}:close"), 404, "batch_not_found")
    check_problem(await client.post("/v1/batches/x:close"), 422, "invalid_input")


async def test_a_repeat_adds_nothing_twice_even_after_the_close(client: httpx.AsyncClient) -> None:
    batch_id = await opened(client, "a", key="made")
    first = await add(client, batch_id, "b", "c", key="added")
    assert "idempotency-replayed" not in first.headers
    await close(client, batch_id)
    again = await add(client, batch_id, "b", "c", key="added")
    assert (again.status_code, again.headers["idempotency-replayed"], again.json()["tasks"]) == (202, "true", 3)
    assert await opened(client, "a", key="made") == batch_id
    assert len(await members(client, batch_id)) == 3
    for other in (("b",), ("b", "d"), ("b", "c", "d")):
        problem = check_problem(await add(client, batch_id, *other, key="added"), 422, "idempotency_mismatch")
        assert problem["made"] == f"batch {batch_id}"


async def test_what_is_added_while_it_is_closed_is_in_it_or_refused(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways add, one of them closes just before a lot is stored: the batch's number is what the log has."""
    monkeypatch.setattr(batches, "LOT", 3)
    together, lots = batches.append_together, [0]
    async with (
        running(settings.model_copy(update={"data_dir": tmp_path / "other"})) as url,
        httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as other,
    ):
        batch_id = await opened(client)

        async def closed_before_the_fifth(log: EventLog, appends: list[Append]) -> Sequence:
            lots[0] += 1
            if lots[0] == 5:
                await close(other, batch_id)
            return await together(log, appends)

        monkeypatch.setattr(batches, "append_together", closed_before_the_fifth)
        adding = [asyncio.create_task(add(side, batch_id, *range(40))) for side in (client, other, client, other)]
        answers = await asyncio.gather(*adding)
        await close(client, batch_id)  # so that this gateway knows what came through the other one
        last = await shown(client, batch_id)
        rows = await members(client, batch_id)
        taken = [40 if each.status_code == 202 else each.json()["taken"] for each in answers]
        assert 0 < last["tasks"] == len(rows) == sum(taken) < 160
        assert {each.json()["code"] for each in answers if each.status_code != 202} == {"batch_is_closed"}


async def test_a_request_that_was_cut_off_is_finished_by_its_repeat_or_closed_as_it_is(
    client: httpx.AsyncClient, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "LOT", 2)
    together, lots = batches.append_together, [0]

    async def cut_off(log: EventLog, appends: list[Append]) -> Sequence:
        lots[0] += 1
        if lots[0] % 3 == 0:
            raise NoServer(problem="cut off")
        return await together(log, appends)

    monkeypatch.setattr(batches, "append_together", cut_off)
    asked, key = {"tasks": echoes(*range(6))}, {"Idempotency-Key": "k"}
    check_problem(await client.post("/v1/batches", json=asked, headers=key), 503, "no_server")
    batch_id = batches.batch_id_for(None, "k")
    left = await shown(client, batch_id)
    assert (left["state"], left["tasks"], left["counts"]) == ("open", 4, {"queued": 4})
    assert await made(client, asked, key) == batch_id
    whole = await shown(client, batch_id)
    assert (whole["state"], whole["tasks"], len(await members(client, batch_id))) == ("closed", 6, 6)
    lots[0] = 1
    check_problem(await client.post("/v1/batches", json=asked, headers={"Idempotency-Key": "l"}), 503, "no_server")
    other = batches.batch_id_for(None, "l")
    assert (await close(client, other))["tasks"] == 2
    repeat = await client.post("/v1/batches", json=asked, headers={"Idempotency-Key": "l"})
    assert check_problem(repeat, 409, "batch_is_closed")["taken"] == 2


async def test_a_batch_may_be_larger_than_a_request(client: httpx.AsyncClient, log: EventLog) -> None:
    batch_id = await opened(client)
    for part in range(3):
        assert (await add(client, batch_id, *range(700), key=str(part))).status_code == 202
    assert (await close(client, batch_id))["tasks"] == 2100
    last = await shown(client, batch_id)
    assert (last["tasks"], last["counts"]) == (2100, {"queued": 2100})
    assert await log.last_sequence(TASKS) == 2100 + 1 + 9 + 1
