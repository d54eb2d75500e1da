"""POST /v1/tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId
from tests.integration.gateway.support import ECHO, Player, check_problem, read_stream, register, submitted
from tests.support.server import eventually

WRITE: dict[str, Any] = {"kind": "text-generation", "model": "org/writer", "params": {"prompt": "Once"}}


async def test_a_submitted_task_is_in_the_log(client: httpx.AsyncClient, log: EventLog) -> None:
    body = ECHO | {"lane": "batch", "metadata": {"team": "a"}, "timeout_s": 2.5}
    response = await client.post("/v1/tasks", json=body, headers={"X-Request-Id": "mine-1"})
    assert response.status_code == 202
    answer = response.json()
    links = {"self": f"/v1/tasks/{answer['task_id']}", "events": f"/v1/tasks/{answer['task_id']}/events"}
    assert response.headers["location"] == links["self"]
    assert (answer["state"], answer["links"]) == ("queued", links)
    (recorded,) = await log.read_task(TaskId(answer["task_id"]))
    assert recorded.sequence == answer["sequence"]
    assert recorded.causation == response.headers["x-request-id"] == "mine-1"
    assert recorded.source.startswith("/gateway/")
    assert isinstance(recorded.event, TaskSubmitted)
    assert (recorded.event.lane, recorded.event.metadata, recorded.event.timeout_ms) == ("batch", {"team": "a"}, 2500)


async def test_a_request_id_that_is_not_sane_is_replaced(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/tasks", json=ECHO, headers={"X-Request-Id": "a b\tc"})
    assert len(response.headers["x-request-id"]) == 26


async def test_an_idempotency_key_makes_one_task(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order 17!"}
    answers = await asyncio.gather(*[client.post("/v1/tasks", json=ECHO, headers=headers) for _ in range(8)])
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["task_id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    other = await client.post("/v1/tasks", json=ECHO | {"lane": "batch"}, headers=headers)
    check_problem(other, 422, "idempotency_mismatch")


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"caf\xc3\xa9", b"a\tb"])
async def test_an_idempotency_key_is_printable_and_short(client: httpx.AsyncClient, key: bytes) -> None:
    response = await client.post("/v1/tasks", json=ECHO, headers=[(b"Idempotency-Key", key)])
    assert check_problem(response, 422, "invalid_input")["field"] == "Idempotency-Key"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ("text", "body"),
        ({}, "kind"),
        (ECHO | {"kind": "painting"}, "kind"),
        (ECHO | {"kind": 7}, "kind"),
        ({"kind": "echo"}, "model"),
        (ECHO | {"model": ""}, "model"),
        (ECHO | {"model": "two words"}, "model"),
        (ECHO | {"model": "m" * 201}, "model"),
        (ECHO | {"model": None}, "model"),
        (ECHO | {"params": []}, "params"),
        (ECHO | {"params": {"steps": -1}}, "params.steps"),
        (ECHO | {"params": {"steps": "many"}}, "params.steps"),
        (ECHO | {"params": {"colour": "red"}}, "params.colour"),
        (ECHO | {"lane": "fast"}, "lane"),
        (ECHO | {"priority": 1}, "priority"),
        (ECHO | {"retry": {"max_attempts": 0}}, "retry.max_attempts"),
        (ECHO | {"retry": {"forever": True}}, "retry.forever"),
        (ECHO | {"timeout_s": 0}, "timeout_s"),
        (ECHO | {"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        (ECHO | {"metadata": {"a b": "c"}}, "metadata"),
        (ECHO | {"metadata": {"a": 1}}, "metadata.a"),
        (ECHO | {"metadata": {"a": "x" * 513}}, "metadata.a"),
        (WRITE | {"params": {}}, "params"),
        (WRITE | {"params": {"prompt": "a", "max_tokens": 0}}, "params.max_tokens"),
        (WRITE | {"params": {"prompt": "a", "temperature": "hot"}}, "params.temperature"),
        (WRITE | {"params": {"messages": [{"role": "pope", "content": "x"}]}}, "params.messages.0.role"),
    ],
)
async def test_a_bad_field_is_named(client: httpx.AsyncClient, body: Any, field: str) -> None:
    problem = check_problem(await client.post("/v1/tasks", json=body), 422, "invalid_input")
    assert problem["field"] == field


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"kind": "\xe9"}', b'{"kind": NaN}', b'{"a": "\\ud800"}', b"[" * 5000]
)
async def test_what_is_not_json_in_utf8_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    response = await client.post("/v1/tasks", content=body, headers={"Content-Type": "application/json"})
    check_problem(response, 400, "malformed_body")


@pytest.mark.parametrize("media_type", [None, "text/plain", "application/x-www-form-urlencoded", "json", "x/json"])
async def test_another_content_type_is_refused(client: httpx.AsyncClient, media_type: str | None) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = await client.post("/v1/tasks", content=orjson.dumps(ECHO), headers=headers)
    check_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.x+json"]
)
async def test_json_has_many_names(client: httpx.AsyncClient, media_type: str) -> None:
    response = await client.post("/v1/tasks", content=orjson.dumps(ECHO), headers={"Content-Type": media_type})
    assert response.status_code == 202


async def test_a_huge_body_is_refused_by_its_length(client: httpx.AsyncClient) -> None:
    body = orjson.dumps(WRITE | {"params": {"prompt": "x" * 10_000_000}})
    response = await client.post("/v1/tasks", content=body, headers={"Content-Type": "application/json"})
    assert check_problem(response, 413, "payload_too_large")["limit_bytes"] == 256 * 1024


async def test_a_body_of_unknown_length_is_read_up_to_the_limit(client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 10_000

    response = await client.post("/v1/tasks", content=endless(), headers={"Content-Type": "application/json"})
    check_problem(response, 413, "payload_too_large")


@pytest.mark.parametrize("model", ["nobody/knows", "bl.>", "*", "a.b.c", "../../etc", "echo\u202e", "org/writer@v9"])
async def test_an_unknown_model_is_refused(client: httpx.AsyncClient, model: str) -> None:
    problem = check_problem(await client.post("/v1/tasks", json=WRITE | {"model": model}), 422, "unknown_model")
    assert (problem["model"], problem["known"]) == (model, "org/writer")


async def test_a_model_is_known_for_its_kind_alone(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/v1/tasks", json=ECHO | {"model": "org/writer"}), 422, "unknown_model")


async def test_a_model_is_known_as_soon_as_it_is_registered(client: httpx.AsyncClient, log: EventLog) -> None:
    await register(log, "echo", "late")
    await submitted(client, ECHO | {"model": "late"})


async def test_unknown_parameters_are_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/tasks?dry_run=1", json=ECHO)
    assert check_problem(response, 422, "invalid_input")["field"] == "dry_run"


async def test_a_big_input_becomes_an_artifact(client: httpx.AsyncClient, log: EventLog) -> None:
    task_id = await submitted(client, WRITE | {"params": {"prompt": "x" * 100_000}})
    (recorded,) = await log.read_task(TaskId(task_id))
    assert isinstance(recorded.event, TaskSubmitted)
    assert recorded.event.params is None
    assert recorded.event.params_ref is not None
    fetched = await client.get(f"/v1/artifacts/{recorded.event.params_ref.sha256}")
    assert fetched.json()["prompt"] == "x" * 100_000


async def test_a_long_refused_value_is_not_sent_back_whole(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/tasks", json=ECHO | {"kind": "x" * 200_000})
    check_problem(response, 422, "invalid_input")
    assert len(response.content) < 10_000


async def test_prefer_wait_answers_with_the_ended_task(
    client: httpx.AsyncClient, log: EventLog, player: Player
) -> None:
    waiting = asyncio.create_task(client.post("/v1/tasks", json=ECHO, headers={"Prefer": "respond-async, wait=5"}))
    async for batch in log.tail("TASKS", 0):
        await player.run(batch[0].subject.split(".")[2], message="hello")
        break
    response = await waiting
    assert (response.status_code, response.headers["preference-applied"]) == (200, "wait=5")
    assert (response.json()["state"], response.json()["result"]) == ("succeeded", {"message": "hello"})
    assert response.json() == (await client.get(response.headers["location"])).json()


async def test_prefer_wait_gives_up_in_time(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/tasks", json=ECHO, headers={"Prefer": "wait=1"})
    assert (response.status_code, response.json()["state"]) == (202, "queued")


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=0", "wait", "return=minimal", "wait=-1"])
async def test_a_preference_that_makes_no_sense_is_passed_over(client: httpx.AsyncClient, prefer: str) -> None:
    assert (await client.post("/v1/tasks", json=ECHO, headers={"Prefer": prefer})).status_code == 202


async def test_a_task_can_be_watched_in_the_answer_to_its_submit(client: httpx.AsyncClient, player: Player) -> None:
    headers = {"Accept": "text/event-stream"}
    async with client.stream("POST", "/v1/tasks", json=ECHO, headers=headers) as response:
        assert response.status_code == 200
        task_id = response.headers["location"].rpartition("/")[2]
        events = read_stream(response)
        types = [(await anext(events)).type]
        await player.run(task_id, message=1)
        types += [seen.type async for seen in events]
    assert types == ["task.submitted", "task.assigned", "task.succeeded"]


async def test_a_repeated_submit_streams_the_first_ones_events(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client, headers={"Idempotency-Key": "k"})
    await player.run(task_id)
    headers = {"Accept": "text/event-stream", "Idempotency-Key": "k"}
    async with client.stream("POST", "/v1/tasks", json=ECHO, headers=headers) as response:
        assert response.headers["idempotency-replayed"] == "true"
        assert [seen.type async for seen in read_stream(response)][-1] == "task.succeeded"


async def test_a_task_that_starts_later_is_shown_as_scheduled_until_it_is_queued(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/tasks", json=ECHO | {"delay_s": 0.5})
    assert response.status_code == 202
    assert response.json()["state"] == "scheduled"
    path = response.json()["links"]["self"]
    row = (await client.get(path)).json()
    assert (row["state"], row["queued_at"]) == ("scheduled", None)

    async def queued() -> bool:
        return (await client.get(path)).json()["state"] == "queued"

    await eventually(queued)
    after = (await client.get(path)).json()
    assert after["run_at"] == row["run_at"] <= after["queued_at"]


async def test_two_starts_are_refused(client: httpx.AsyncClient) -> None:
    body = ECHO | {"delay_s": 5, "run_at": "2030-01-01T00:00:00Z"}
    check_problem(await client.post("/v1/tasks", json=body), 422, "invalid_input")
    problem = check_problem(
        await client.post("/v1/tasks", json=ECHO | {"run_at": "2030-01-01T00:00:00"}), 422, "invalid_input"
    )
    assert problem["field"] == "run_at"
