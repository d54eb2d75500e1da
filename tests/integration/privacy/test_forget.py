"""Forgetting: the key's bytes leave the disk, the artifacts go, the log says so, and nothing brings it back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from bitinglip.errors import ArtifactExpired
from bitinglip.events import artifacts
from bitinglip.events.keys import find_key, key_for, owners
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.tasks import privacy
from tests.integration.gateway.support import check_problem
from tests.integration.privacy.support import MARKER, House, private
from tests.support.server import eventually


async def test_after_it_the_key_is_nowhere_and_what_was_sealed_is_gone(house: House) -> None:
    ran = await house.run(private())
    key = await find_key(house.log.connection, ran["task_id"])
    assert key is not None
    assert house.found_in(key) == ["1.blk"]  # the search finds a key that is there
    answer = await house.client.post(f"/v1/tasks/{ran['task_id']}/forget")
    assert (answer.status_code, answer.json()["forgotten"], answer.json()["state"]) == (200, True, "succeeded")
    after = (await house.client.get(f"/v1/tasks/{ran['task_id']}")).json()
    assert (after["params"], after["result"], after["state"]) == (None, None, "succeeded")
    assert after["forgotten_at"] is not None
    for name in ("params", "result"):
        check_problem(await house.client.get(f"/v1/tasks/{ran['task_id']}/{name}"), 410, "task_forgotten")
    for reference in (ran["params_ref"], ran["result_ref"]):
        check_problem(await house.client.get(f"/v1/artifacts/{reference['sha256']}"), 410, "artifact_expired")
    await house.stop()
    assert house.found_in(key) == []


async def test_it_is_refused_before_the_end_and_for_what_is_not_private(house: House) -> None:
    later = await house.submit(private(delay_s=3600))
    refused = check_problem(await house.client.post(f"/v1/tasks/{later}/forget"), 409, "illegal_transition")
    assert "cancel it first" in refused["detail"]
    await house.client.delete(f"/v1/tasks/{later}")
    assert (await house.client.post(f"/v1/tasks/{later}/forget")).status_code == 200
    plain = await house.run({"kind": "echo", "model": "echo", "params": {"message": 1}})
    check_problem(await house.client.post(f"/v1/tasks/{plain['task_id']}/forget"), 409, "task_not_private")


async def test_it_is_done_once_however_often_it_is_asked_for(house: House) -> None:
    task_id = (await house.run(private()))["task_id"]
    for _ in range(2):
        assert (await house.client.post(f"/v1/tasks/{task_id}/forget")).status_code == 200
    assert [each.get("type") for each in await house.stored(TASKS)].count("task.forgotten") == 1


async def _key_gone(house: House, task_id: TaskId) -> None:
    await privacy.destroy_key(house.log.connection, task_id)


async def _artifacts_gone_too(house: House, task_id: TaskId) -> None:
    await privacy.destroy(house.log.connection, await house.log.read_task(task_id))


@pytest.mark.parametrize("half", [_key_gone, _artifacts_gone_too])
async def test_one_that_ended_half_way_reads_as_forgotten_and_can_be_finished(
    house: House, half: Callable[[House, TaskId], Awaitable[None]]
) -> None:
    key = {"Idempotency-Key": "k"}
    task_id = TaskId(await house.submit(private(), key))
    await house.over(task_id)
    await half(house, task_id)
    seen = (await house.client.get(f"/v1/tasks/{task_id}")).json()
    assert (seen["params"], seen["result"]) == (None, None)
    answer = await house.client.get(f"/v1/tasks/{task_id}/result")
    assert (answer.status_code, MARKER in answer.text) == (410, False)
    check_problem(await house.client.post("/v1/tasks", json=private(), headers=key), 410, "task_forgotten")
    assert await find_key(house.log.connection, task_id) is None
    assert (await house.client.post(f"/v1/tasks/{task_id}/forget")).status_code == 200
    assert (await house.client.get(f"/v1/tasks/{task_id}")).json()["forgotten_at"] is not None


async def test_a_repeat_of_its_request_is_told_and_leaves_no_key(house: House) -> None:
    key = {"Idempotency-Key": "k"}
    task_id = await house.submit(private(), key)
    await house.over(task_id)
    await house.client.post(f"/v1/tasks/{task_id}/forget")
    check_problem(await house.client.post("/v1/tasks", json=private(), headers=key), 410, "task_forgotten")
    assert await find_key(house.log.connection, task_id) is None


async def test_a_task_that_waits_for_a_forgotten_one_is_dropped(house: House) -> None:
    first = await house.run(private())
    hold = await house.submit({"kind": "echo", "model": "echo", "params": {}, "delay_s": 3600})
    taken = {"message": {"$result": first["task_id"]}}
    waits = await house.submit(private() | {"params": taken, "depends_on": [first["task_id"], hold]})
    await house.client.post(f"/v1/tasks/{first['task_id']}/forget")
    body = {"kind": "echo", "model": "echo", "params": {}, "depends_on": [hold], "on_failure": "run"}
    await house.submit(body)
    await house.client.delete(f"/v1/tasks/{hold}")
    assert (await house.over(waits))["state"] == "cancelled"


async def test_many_are_forgotten_by_when_they_ended(house: House) -> None:
    ended = [(await house.run(private()))["task_id"] for _ in range(3)]
    waiting = await house.submit(private(delay_s=3600))
    plain = await house.run({"kind": "echo", "model": "echo", "params": {}})
    before = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    seen = (await house.client.post("/v1/tasks:forget", json={"before": before, "dry_run": True})).json()
    assert sorted(seen["task_ids"]) == sorted(ended)
    done = (await house.client.post("/v1/tasks:forget", json={"before": before})).json()
    assert (done["forgotten"], done["refused"]) == (3, [])
    assert (await house.client.post("/v1/tasks:forget", json={"before": before})).json()["matched"] == 0
    assert sorted(await owners(house.log.connection)) == [waiting]
    assert plain["task_id"] not in seen["task_ids"]


async def test_keys_that_no_task_has_are_swept_with_what_they_sealed(house: House) -> None:
    from bitinglip.gateway.keysweep import KeySweep
    from bitinglip.projections.readmodel import ReadModel
    from bitinglip.settings import Projections

    ran = await house.run(private())
    orphan = house.log.ids()
    reference = await privacy.put_params(house.log.connection, TaskId(orphan), {"prompt": MARKER})
    await key_for(house.log.connection, house.log.ids())
    readmodel = await ReadModel.open(Projections(), house.folder / "sweep.duckdb", house.log)
    try:
        await readmodel.wait_ready()
        sweep = KeySweep(house.log, readmodel)
        assert await sweep.sweep() == []  # they may belong to requests of this moment
        assert len(await sweep.sweep(timedelta(0))) == 2
        gone = await house.run(private())
        await house.client.post(f"/v1/tasks/{gone['task_id']}/forget")
        await key_for(house.log.connection, gone["task_id"])  # as if its destruction had not come so far
        assert await sweep.sweep(timedelta(0)) == [gone["task_id"]]
    finally:
        await readmodel.close()
    assert await owners(house.log.connection) == [ran["task_id"]]
    with pytest.raises(ArtifactExpired):
        await artifacts.find(house.log.connection, reference.sha256)
    assert (await house.client.get(f"/v1/tasks/{ran['task_id']}/result")).json() == {"message": MARKER}


async def test_a_batch_of_private_tasks_is_forgotten_member_by_member(house: House) -> None:
    made = (await house.client.post("/v1/batches", json={"tasks": [private(), private()]})).json()
    assert made["batch_id"] in await owners(house.log.connection)

    async def all_over() -> list[str] | None:
        tasks = (await house.client.get("/v1/tasks", params={"batch": made["batch_id"]})).json()["tasks"]
        return [task["task_id"] for task in tasks if task["state"] == "succeeded"] if len(tasks) == 2 else None

    first, second = await eventually(lambda: _both(all_over))
    await house.client.post(f"/v1/tasks/{first}/forget")
    assert sorted(await owners(house.log.connection)) == [second]
    assert (await house.client.get(f"/v1/tasks/{second}")).json()["result"] == {"message": MARKER}


async def _both(found: Callable[[], Awaitable[list[str] | None]]) -> list[str] | None:
    ids = await found()
    return ids if ids is not None and len(ids) == 2 else None
