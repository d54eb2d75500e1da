"""Nothing of what a private task was asked and answered is anywhere but sealed; its caller reads it all the same."""

from __future__ import annotations

import httpx
import orjson

from bitinglip.events.keys import find_key
from bitinglip.events.streams import MODELS, SCHEDULES, TASKS, WORKERS
from tests.integration.gateway.support import check_problem, read_stream, replayed
from tests.integration.privacy.support import MARKER, House, private
from tests.integration.privacy.writer import write_out
from tests.support.server import eventually


async def test_a_marker_is_nowhere_after_submit_run_fail_and_stream(house: House) -> None:
    ran = await house.run(private(params={"steps": 3}))
    assert (ran["state"], ran["result"]) == ("succeeded", {"message": MARKER})
    assert ran["params"]["message"] == MARKER
    assert (await house.run(private(params={"fail": "bad_input"})))["state"] == "failed"
    crashed = await house.run(private(params={"fail": "crash"}, retry={"max_attempts": 2, "base_ms": 0}))
    assert crashed["state"] == "dead_lettered"
    assert MARKER not in crashed["failure"]["message"]
    batch = {"tasks": [private(), private()], "defaults": {}}
    assert (await house.client.post("/v1/batches", json=batch, headers={"Idempotency-Key": "b"})).status_code == 202
    schedule = {"every_s": 3600, "task": private()}
    assert (await house.client.post("/v1/schedules", json=schedule)).status_code == 201
    plain = await house.run({"kind": "echo", "model": "echo", "params": {"message": "open-WILLOW-99"}})
    assert plain["result"] == {"message": "open-WILLOW-99"}
    found = await house.client.post("/v1/query", json={"sql": "select count(*) from events where data like '%MANGR%'"})
    assert found.json()["rows"] == [[0]]
    for stream in (TASKS, SCHEDULES, WORKERS, MODELS):  # what is on the disk is compressed
        assert MARKER.encode() not in orjson.dumps(await house.stored(stream))
    await house.stop()
    assert house.found_in("open-WILLOW-99") != []  # the search finds what is not private
    assert house.found_in() == []


async def test_what_is_streamed_is_sealed_in_the_log_and_clear_to_its_caller(house: House) -> None:
    words = {"kind": "text-generation", "model": "org/writer", "private": True, "params": {"prompt": MARKER}}
    task_id = await write_out(house, words, ["so ", MARKER, " said"])
    async with house.client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        seen = [each async for each in read_stream(response)]
    texts = [each.event["data"]["text"] for each in seen if each.type == "task.progressed"]
    assert texts == ["so ", MARKER, " said"]
    assert next(each for each in seen if each.type == "task.succeeded").event["data"]["result"]["text"] == MARKER
    stored = [each["data"] for each in await house.stored(TASKS) if each.get("type") == "task.progressed"]
    assert all(each["text"] is None and each["sealed"] for each in stored)
    assert MARKER.encode() not in orjson.dumps(await house.stored(TASKS))
    await house.stop()
    assert house.found_in() == []


async def test_a_result_that_is_waited_for_or_streamed_by_its_submission_is_clear(house: House) -> None:
    waited = await house.client.post("/v1/tasks", json=private(), headers={"Prefer": "wait=20"})
    assert waited.json()["result"] == {"message": MARKER}
    async with house.client.stream(
        "POST", "/v1/tasks", json=private(), headers={"Accept": "text/event-stream"}
    ) as answer:
        seen = [each async for each in read_stream(answer)]
    assert seen[0].event["data"]["params"]["message"] == MARKER
    assert seen[-1].event["data"]["result"] == {"message": MARKER}
    history = (await house.client.get(f"/v1/tasks/{waited.json()['task_id']}/events", params={"format": "json"})).json()
    assert history[-1]["data"]["result"] == {"message": MARKER}


async def test_large_results_are_artifacts_that_the_gateway_opens(house: House) -> None:
    long = MARKER * 10_000
    ran = await house.run(private(long))
    assert ran["result"] is None
    answer = await house.client.get(f"/v1/artifacts/{ran['result_ref']['sha256']}")
    assert answer.json() == {"message": long}
    assert answer.headers["cache-control"] == "no-store"
    for name in ("params", "result"):
        assert (await house.client.get(f"/v1/tasks/{ran['task_id']}/{name}")).json()["message"] == long


async def test_the_setting_makes_every_task_private_but_those_that_say_no(house: House) -> None:
    gateway = await house.cluster.gateway(BITINGLIP_TASKS_PRIVATE="true")
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        body = {"kind": "echo", "model": "echo", "params": {"message": 1}}
        silent = (await client.post("/v1/tasks", json=body)).json()["task_id"]
        loud = (await client.post("/v1/tasks", json=body | {"private": False})).json()["task_id"]
        assert [(await client.get(f"/v1/tasks/{task}")).json()["private"] for task in (silent, loud)] == [True, False]


async def test_the_idempotent_repeat_of_a_private_request_is_known_and_its_digest_tells_nothing(house: House) -> None:
    key = {"Idempotency-Key": "k"}
    first = await house.submit(private(), key)
    assert await house.submit(private(), key) == first
    check_problem(await house.client.post("/v1/tasks", json=private("else"), headers=key), 422, "idempotency_mismatch")
    other = await house.submit(private())
    digests = {
        each["data"]["task_id"]: each["data"]["request_sha256"]
        for each in await house.stored(TASKS)
        if each.get("type") == "task.submitted"
    }
    assert digests[first] != digests[other]  # the same request: who guesses it learns nothing from the log
    batch = {"tasks": [private()]}
    answers = [await house.client.post("/v1/batches", json=batch, headers=key) for _ in range(2)]
    assert answers[0].json()["batch_id"] == answers[1].json()["batch_id"]
    assert answers[1].headers["idempotency-replayed"] == "true"


async def test_a_retry_has_a_key_of_its_own(house: House) -> None:
    failed = await house.run(private(params={"fail": "bad_input"}))
    again = (await house.client.post(f"/v1/tasks/{failed['task_id']}/retry")).json()["task_id"]
    assert (await house.client.post(f"/v1/tasks/{failed['task_id']}/retry")).json()["task_id"] == again
    await house.over(again)
    await house.client.post(f"/v1/tasks/{failed['task_id']}/forget")
    after = (await house.client.get(f"/v1/tasks/{again}")).json()
    assert (after["retry_of"], after["params"]["message"]) == (failed["task_id"], MARKER)
    check_problem(await house.client.post(f"/v1/tasks/{failed['task_id']}/retry"), 410, "task_forgotten")


async def test_a_replay_is_as_private_and_there_is_none_of_what_was_forgotten(house: House) -> None:
    task_id = (await house.run(private()))["task_id"]
    status, told = await replayed(str(house.client.base_url), task_id)
    assert (status, told["same"]) == (0, True)
    again = (await house.client.get(f"/v1/tasks/{told['replay']}")).json()
    assert (again["private"], again["result"]) == (True, {"message": MARKER})
    assert MARKER.encode() not in orjson.dumps(await house.stored(TASKS))
    await house.client.post(f"/v1/tasks/{task_id}/forget")
    count = len(await house.stored(TASKS))
    assert (await replayed(str(house.client.base_url), task_id))[0] != 0
    assert len(await house.stored(TASKS)) == count


async def test_results_become_parameters_of_private_tasks_alone(house: House) -> None:
    first = await house.run(private())
    taken = {"message": {"$result": first["task_id"], "path": "message"}}
    after = {"params": taken, "depends_on": [first["task_id"]]}
    refused = await house.client.post("/v1/tasks", json=private() | after | {"private": False})
    assert "private" in check_problem(refused, 422, "invalid_input")["detail"]
    second = await house.run(private() | after)
    assert (second["state"], second["result"]) == ("succeeded", {"message": MARKER})
    await house.stop()
    assert house.found_in() == []


async def test_a_private_schedule_shows_its_task_and_fires(house: House) -> None:
    made = (await house.client.post("/v1/schedules", json={"every_s": 1, "task": private()})).json()
    assert made["task"]["params"] == {"message": MARKER}
    assert "sealed" not in made
    path = f"/v1/schedules/{made['schedule_id']}"

    async def fired() -> str | None:
        last = (await house.client.get(path)).json()["last"]
        return last and last["task_id"]

    ran = await house.over(await eventually(fired))
    assert (ran["private"], ran["result"]) == (True, {"message": MARKER})
    assert MARKER.encode() not in orjson.dumps(await house.stored(SCHEDULES))
    assert (await house.client.delete(path)).status_code == 200
    assert await find_key(house.log.connection, made["schedule_id"]) is None
