"""The archive behind a gateway: files, the window, and everything that a caller can still ask of what has left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events import archive, subjects
from bitinglip.events.log import EventLog
from bitinglip.events.streams import ARCHIVE_BUCKET, LEDGER, QUEUE, TASKS
from bitinglip.ids import TaskId
from bitinglip.projections.archivefile import messages_of
from bitinglip.settings import Archive, Gateway, Nats, Settings
from tests.integration.gateway.support import ECHO, Player, check_problem, collect, replayed, running, submitted
from tests.support.server import eventually

SMALL = Archive(every_s=0, settled_s=0, part_events=30, hot_age_s=1e9, hot_tasks=0)
TABLES = ("tasks", "batches", "workers", "nodes", "models", "model_nodes", "model_aliases", "worker_restarts")


@asynccontextmanager
async def a_gateway(nats_url: str, folder: Path, settings: Archive = SMALL) -> AsyncIterator[httpx.AsyncClient]:
    whole = Settings(data_dir=folder, nats=Nats(url=nats_url), gateway=Gateway(port=0), archive=settings)
    async with running(whole) as url, httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        yield client


@pytest.fixture
async def client(log: EventLog, nats_url: str, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with a_gateway(nats_url, tmp_path / "first") as client:
        yield client


async def ended(client: httpx.AsyncClient, player: Player, count: int) -> list[str]:
    """Submit tasks and bring them to their end."""
    made = [await submitted(client) for _ in range(count)]
    for task_id in made:
        await player.run(task_id, text=task_id)
    await collect(client, f"/v1/tasks/{made[-1]}/events")  # and so the gateway reads what it has shown
    await client.get(f"/v1/tasks/{made[-1]}")
    return made


async def archived(client: httpx.AsyncClient, **params: str) -> dict[str, Any]:
    response = await client.post("/v1/log/archive", params={"now": "true"} | params)
    assert response.status_code == 200, response.text
    return response.json()


async def tables(client: httpx.AsyncClient) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table in TABLES:
        answer = await client.post("/v1/query", json={"sql": f"select * from {table} order by all"})
        assert answer.status_code == 200, answer.text
        found[table] = answer.json()["rows"]
    return found


async def test_what_is_over_leaves_and_can_still_be_asked_for(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    made = await ended(client, player, 20)
    waiting = await submitted(client)
    before = [(await client.get(f"/v1/tasks/{task_id}")).json() for task_id in made]
    history = await collect(client, f"/v1/tasks/{made[3]}/events")
    done = await archived(client)
    assert [file["events"] for file in done["archived"] if file["stream"] == TASKS] == [30, 30, 1]
    assert done["trimmed"]["removed"] == 60
    assert await log.messages(TASKS) == 1
    assert [(await client.get(f"/v1/tasks/{task_id}")).json() for task_id in made] == before
    assert await collect(client, f"/v1/tasks/{made[3]}/events") == history
    rest = await collect(client, f"/v1/tasks/{made[3]}/events", headers={"Last-Event-ID": str(history[0].id)})
    assert rest == history[1:]
    told = await client.get(f"/v1/tasks/{made[3]}/events", headers={"Last-Event-ID": str(history[-1].id)})
    assert told.status_code == 204
    as_json = (await client.get(f"/v1/tasks/{made[3]}/events", params={"format": "json"})).json()
    assert [event["type"] for event in as_json] == [seen.type for seen in history]
    await player.run(waiting)
    assert (await collect(client, f"/v1/tasks/{waiting}/events"))[-1].type == "task.succeeded"


async def test_a_new_gateway_has_everything(
    log: EventLog, client: httpx.AsyncClient, nats_url: str, tmp_path: Path
) -> None:
    player = Player(log)
    first = await ended(client, player, 40)
    await archived(client)
    failed = await submitted(client)
    await player.assign(failed)
    await player.fail(failed)
    await ended(client, player, 25)
    running_one = await submitted(client)
    await player.assign(running_one)
    await archived(client)
    late = await ended(client, player, 3)
    before = await tables(client)
    assert len(before["tasks"]) == 40 + 25 + 3 + 2
    async with a_gateway(nats_url, tmp_path / "second") as other:
        await other.get(f"/v1/tasks/{late[-1]}")

        async def caught_up() -> bool:
            return (await other.get("/readyz")).status_code == 200

        await eventually(caught_up)
        assert await tables(other) == before
        assert (await collect(other, f"/v1/tasks/{first[0]}/events"))[-1].type == "task.succeeded"
    rebuilt = await client.post("/v1/projections/rebuild")
    assert rebuilt.status_code == 200, rebuilt.text
    assert await tables(client) == before


async def test_a_key_that_was_used_long_ago_is_known(log: EventLog, client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "once"}
    task_id = await submitted(client, headers=key)
    await Player(log).run(task_id)
    await ended(client, Player(log), 1)
    await archived(client)
    assert await log.read_task(TaskId(task_id)) == []
    again = await client.post("/v1/tasks", json=ECHO, headers=key)
    assert (again.status_code, again.json()["task_id"]) == (202, task_id)
    assert again.headers["idempotency-replayed"] == "true"
    waited = await client.post("/v1/tasks", json=ECHO, headers=key | {"Prefer": "wait=5"})
    assert (waited.status_code, waited.json()["state"]) == (200, "succeeded")
    other = await client.post("/v1/tasks", json=ECHO | {"params": {"message": "other"}}, headers=key)
    check_problem(other, 422, "idempotency_mismatch")
    assert await log.messages(TASKS) == 0


async def test_a_task_that_failed_long_ago_can_be_retried(log: EventLog, client: httpx.AsyncClient) -> None:
    player, task_id = Player(log), await submitted(client)
    await player.assign(task_id)
    await player.fail(task_id)
    await ended(client, player, 1)
    await archived(client)
    retried = (await client.post(f"/v1/tasks/{task_id}/retry")).json()
    await player.run(retried["task_id"])
    await ended(client, player, 1)
    await archived(client)
    again = (await client.post(f"/v1/tasks/{task_id}/retry")).json()
    assert again["task_id"] == retried["task_id"]
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["retried_as"] == [retried["task_id"]]
    check_problem(await client.delete(f"/v1/tasks/{retried['task_id']}"), 409, "illegal_transition")


async def test_a_task_that_ended_long_ago_is_replayed(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    (task_id,) = await ended(client, player, 1)
    await archived(client)
    assert await log.messages(TASKS) == 0
    replay = asyncio.create_task(replayed(str(client.base_url), task_id))

    async def again() -> list[str]:
        page = await client.get("/v1/tasks", params={"metadata.replay_of": task_id})
        return [task["task_id"] for task in page.json()["tasks"]]

    (new,) = await eventually(again, 30)
    await player.run(new, text=task_id)
    status, told = await replay
    assert (status, told["same"], told["replay"]) == (0, True, new)


async def test_a_private_task_that_ended_long_ago_can_be_forgotten(log: EventLog, client: httpx.AsyncClient) -> None:
    player, task_id = Player(log), await submitted(client, ECHO | {"private": True})
    await player.assign(task_id)
    await player.fail(task_id)
    await ended(client, player, 1)
    await archived(client)
    assert await log.messages(TASKS) == 0
    for _ in range(2):
        forgotten = await client.post(f"/v1/tasks/{task_id}/forget")
        assert (forgotten.status_code, forgotten.json()["forgotten"]) == (200, True), forgotten.text
    told = (await client.get(f"/v1/tasks/{task_id}/events", params={"format": "json"})).json()
    assert [event["type"] for event in told] == ["task.submitted", "task.assigned", "task.failed", "task.forgotten"]
    after = await client.post("/v1/tasks", json=ECHO | {"depends_on": [task_id], "on_failure": "run"})
    await player.run(await _ready(log, after.json()["task_id"]))
    await ended(client, player, 1)
    await archived(client)
    assert await log.subjects_of(TASKS, subjects.TASKS) == []  # a timer that was withdrawn stays a moment


async def test_a_task_can_wait_for_one_that_ended_long_ago(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    (before, _) = await ended(client, player, 2)
    await archived(client)
    after = await client.post("/v1/tasks", json=ECHO | {"depends_on": [before]})
    assert after.status_code == 202, after.text
    await player.run(await _ready(log, after.json()["task_id"]))


async def _ready(log: EventLog, task_id: str) -> str:
    async def queued() -> bool:
        return (await Player(log).task(task_id)).state == "queued"

    await eventually(queued)
    return task_id


async def test_what_is_not_over_stays(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    needed = (await ended(client, player, 1))[0]
    unfinished = await submitted(client)
    waiting = (await client.post("/v1/tasks", json=ECHO | {"depends_on": [unfinished, needed]})).json()["task_id"]
    batch = (await client.post("/v1/batches", json={"tasks": [ECHO, ECHO]})).json()["batch_id"]

    async def members_of() -> list[str]:
        page = (await client.get("/v1/tasks", params={"batch": batch})).json()["tasks"]
        return [task["task_id"] for task in page]

    members = await eventually(members_of)
    await player.run(members[0])
    gone = await ended(client, player, 5)
    await archived(client)
    held = {subject.split(".")[2] for subject in await log.subjects_of(TASKS, subjects.TASKS)}
    assert held == {needed, unfinished, waiting, *members}
    assert not held & set(gone)
    timers = await log.subjects_of(TASKS, subjects.TIMERS)
    assert timers == [f"bl.timer.{waiting}.after"]
    await player.run(unfinished)
    await player.run(members[1])

    async def completed() -> bool:
        return (await client.get(f"/v1/batches/{batch}")).json()["state"] == "completed"

    await eventually(completed)
    await player.run(await _ready(log, waiting))
    await ended(client, player, 1)
    await archived(client)
    assert await log.subjects_of(TASKS, subjects.TASKS) == []
    shown = (await client.get(f"/v1/batches/{batch}")).json()
    assert (shown["tasks"], shown["done"]) == (2, 2)
    again = await client.post(f"/v1/batches/{batch}:close")
    assert again.status_code == 200


async def test_what_waits_in_the_queue_is_not_touched(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    waiting = [await submitted(client) for _ in range(5)]
    await ended(client, player, 5)

    async def queued() -> int:
        return (await log.connection.js.stream_info(QUEUE)).state.messages

    await eventually(lambda: _is(queued, 10))
    await archived(client)
    assert await queued() == 10
    waiting.append(await submitted(client))
    await eventually(lambda: _is(queued, 11))
    assert {subject.split(".")[2] for subject in await log.subjects_of(TASKS, subjects.TASKS)} == set(waiting)


async def _is(ask: Any, wanted: object) -> bool:
    return await ask() == wanted


async def test_the_whole_stream_can_be_read_from_its_start(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    made = await ended(client, player, 12)
    everything = {"stream": "tasks", "from": "start", "follow": "false"}
    before = await collect(client, "/v1/events", everything)
    await archived(client)
    last = await submitted(client)
    after = await collect(client, "/v1/events", everything)
    assert after[:-1] == before
    assert after[-1].event["subject"] == last
    ends = await collect(client, "/v1/events", everything | {"types": "task.succeeded"})
    assert [seen.event["subject"] for seen in ends] == made
    one = await collect(client, "/v1/events", everything | {"task_id": made[4], "after": str(before[0].id)})
    assert [seen.type for seen in one] == ["task.submitted", "task.assigned", "task.succeeded"]


async def test_two_gateways_archive_each_event_once(
    log: EventLog, client: httpx.AsyncClient, nats_url: str, tmp_path: Path
) -> None:
    async with a_gateway(nats_url, tmp_path / "second") as other:
        player = Player(log)
        sequences: list[int] = []
        for _ in range(3):
            await ended(client, player, 15)
            await asyncio.gather(*[archived(each, stream="tasks") for each in (client, other) * 2])
        for file in await archive.index(log.connection, TASKS):
            path = tmp_path / "copy.parquet"
            await archive.fetch(log.connection, file, path)
            found = [message.sequence for batch in messages_of(path) for message in batch]
            assert (found[-1], len(found)) == (file.last_sequence, file.events)
            sequences += found
        assert len(sequences) == 3 * 15 * 3
        assert sequences == sorted(set(sequences))
        assert await log.messages(TASKS) == 0
        files = await archive.index(log.connection, TASKS)
        begins = [file.first_sequence for file in files]
        assert begins == [1, *[file.last_sequence + 1 for file in files[:-1]]]
    known = {file.file for file in files}
    swept = await archive.sweep(log, older_than_s=-60.0)
    assert not known & set(swept)
    for file in files:
        await archive.fetch(log.connection, file, tmp_path / "copy.parquet")
    assert await archive.sweep(log, older_than_s=-60.0) == []


async def test_nothing_leaves_when_the_archive_is_damaged(log: EventLog, nats_url: str, tmp_path: Path) -> None:
    async with a_gateway(nats_url, tmp_path / "first", SMALL.model_copy(update={"hot_tasks": 100})) as client:
        await ended(client, Player(log), 4)
        done = await archived(client)
        assert done["trimmed"] is None
    (file,) = await archive.index(log.connection, TASKS)
    (tmp_path / "other").write_bytes(b"other")
    await archive.store(log.connection, file.file, tmp_path / "other")
    async with a_gateway(nats_url, tmp_path / "first") as client:
        check_problem(await client.post("/v1/log/archive"), 503, "archive_damaged")
        assert await log.messages(TASKS) == file.events
        good = tmp_path / "first" / "archive" / file.file
        await archive.store(log.connection, file.file, good)
        assert (await archived(client))["trimmed"]["removed"] == file.events


async def test_what_is_over_leaves_by_its_age(log: EventLog, nats_url: str, tmp_path: Path) -> None:
    many = SMALL.model_copy(update={"hot_tasks": 10**9})
    async with a_gateway(nats_url, tmp_path, many) as client:
        made = await ended(client, Player(log), 4)
        assert (await archived(client))["trimmed"] is None
        assert await log.messages(TASKS) == 4 * 3
    async with a_gateway(nats_url, tmp_path, many.model_copy(update={"hot_age_s": 0.0})) as client:
        waiting = await submitted(client)
        assert (await archived(client))["trimmed"]["removed"] == 4 * 3
        assert await log.messages(TASKS) == 1
        for task_id in made:
            assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "succeeded"
        assert (await client.get(f"/v1/tasks/{waiting}")).json()["state"] == "queued"


async def test_an_archive_without_room_is_told_of_and_loses_nothing(
    log: EventLog, nats_url: str, tmp_path: Path
) -> None:
    often = SMALL.model_copy(update={"every_s": 0.05, "part_events": 5})
    player = Player(log)
    async with a_gateway(nats_url, tmp_path, often) as client:

        async def ready() -> dict[str, Any]:
            return (await client.get("/readyz")).json()

        async def is_degraded() -> bool:
            return (await ready())["status"] == "degraded"

        async def is_archived() -> bool:
            told = (await client.get("/v1/log/archive")).json()["streams"]
            return all(each["archived_to"] >= 30 for each in told if each["stream"] == TASKS)

        first = await ended(client, player, 2)
        await archived(client)
        await room_of_archive(log, 1)
        second = await ended(client, player, 10)
        await eventually(is_degraded)
        assert "wait for the archive" in (await ready())["archive"]
        assert await log.messages(TASKS) == 10 * 3
        for task_id in (*first, *second):
            assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "succeeded"
        check_problem(await client.post("/v1/log/archive", params={"now": "true"}), 503, "stream_full")
        await room_of_archive(log, -1)
        await eventually(is_archived)
        assert await ready() == {"status": "ready", "log": "connected", "read_model": "ready"}
        history = await collect(client, f"/v1/tasks/{second[0]}/events")
        assert [event.type for event in history] == ["task.submitted", "task.assigned", "task.succeeded"]


async def room_of_archive(log: EventLog, size_bytes: int) -> None:
    """Let the archive take so many bytes in all; -1: any."""
    config = (await log.connection.js.stream_info(f"OBJ_{ARCHIVE_BUCKET}")).config
    await log.connection.js.update_stream(config.evolve(max_bytes=size_bytes))


async def test_the_index_and_the_files(log: EventLog, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await ended(client, Player(log), 12)
    await archived(client)
    await submitted(client)
    told = (await client.get("/v1/log/archive", params={"stream": "tasks"})).json()
    (tasks,) = told["streams"]
    assert told["problem"] is None
    assert [file["events"] for file in tasks["files"]] == [30, 6]
    assert (tasks["archived_to"], tasks["trimmed_to"], tasks["messages"], tasks["behind_events"]) == (36, 36, 1, 1)
    first = tasks["files"][0]
    body = await client.get(f"/v1/log/archive/{first['file']}")
    assert (len(body.content), body.headers["etag"]) == (first["size_bytes"], f'"{first["sha256"]}"')
    check_problem(await client.get("/v1/log/archive/TASKS/none.parquet"), 404, "archive_file_not_found")
    check_problem(await client.get("/v1/log/archive/TASKS/..%2F..%2Fprojections.duckdb"), 404, "archive_file_not_found")
    ledger = await log.read_latest(LEDGER, subjects.LEDGER)
    assert {"ledger.archived", "ledger.trimmed"} <= {recorded.type for recorded in ledger}
    metrics = (await client.get("/metrics")).text
    assert 'bitinglip_archive_behind_events{stream="TASKS"} 1.0' in metrics


EVENTS = "select * from events where stream = 'TASKS' order by sequence"


async def asked(client: httpx.AsyncClient, sql: str) -> Any:
    answer = await client.post("/v1/query", json={"sql": sql})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


async def test_events_are_one_table_over_what_is_here_and_what_left(
    log: EventLog, client: httpx.AsyncClient, nats_url: str, tmp_path: Path
) -> None:
    player = Player(log)
    await log.connection.js.publish(f"bl.task.{log.ids()}.queued.normal.echo", b"\xff no event")
    await player.assign(running_one := await submitted(client))
    await player.progress(running_one, 1)
    made = await ended(client, player, 11)
    await archived(client)
    await player.succeed(running_one)
    await ended(client, player, 1)
    before = await asked(client, EVENTS)
    assert [row[0] for row in await asked(client, "select count(*) from events where type = 'corrupt'")] == [1]
    assert len(before) == 1 + 3 * 11 + 4 + 3
    async with a_gateway(nats_url, tmp_path / "second", SMALL.model_copy(update={"hot_tasks": 1000})) as other:
        await other.get(f"/v1/tasks/{made[-1]}")
        await eventually(lambda: _is(lambda: _count(other), len(before) - 1))  # a tick is no lasting event
        whole = await asked(other, EVENTS)
        assert whole == [row for row in before if row[5] != "task.progressed"]
    home = "select table_name from duckdb_tables() where table_name = 'archived'"
    assert await asked(client, home) == [["archived"]]
    assert await asked(client, "select up_to from archived where stream = 'TASKS'") == [[37]]
    await client.post("/v1/projections/rebuild")
    assert await asked(client, EVENTS) == whole


async def _count(client: httpx.AsyncClient) -> int:
    return (await asked(client, "select count(*) from events where stream = 'TASKS'"))[0][0]


async def test_a_stranger_reads_no_other_file(log: EventLog, client: httpx.AsyncClient, tmp_path: Path) -> None:
    await ended(client, Player(log), 12)
    await archived(client)
    (secret := tmp_path / "secret.csv").write_text("a\n1\n")
    inside = tmp_path / "first" / "archive"
    for source in (
        f"'{secret}'",
        f"read_csv('{secret}')",
        f"'{inside}/../../secret.csv'",
        "glob('/*')",
        f"read_parquet('{inside}/*/*/*.parquet')",
        f"'{tmp_path}/first/projections.duckdb'",
        "'/etc/passwd'",
    ):
        answer = await client.post("/v1/query", json={"sql": f"select * from {source}"})
        check_problem(answer, 422, "query_refused")
    answer = await client.post("/v1/query", json={"sql": f"copy tasks to '{inside}/x.csv'"})
    check_problem(answer, 422, "query_refused")


async def test_a_moment_of_what_has_left_is_answered_as_before(log: EventLog, client: httpx.AsyncClient) -> None:
    player = Player(log)
    first = await ended(client, player, 10)
    moment = (await player.task(first[4])).sequence - 1
    asked = [
        ("/v1/tasks", {"as_of": str(moment)}),
        (f"/v1/tasks/{first[4]}", {"as_of": str(moment)}),
        (f"/v1/tasks/{first[4]}/timeline", {"as_of": str(moment)}),
        ("/v1/queues", {"as_of": str(moment)}),
        ("/v1/cluster", {"as_of": str(moment)}),
    ]
    before = [(await client.get(path, params=params)).json() for path, params in asked]
    assert before[1]["state"] == "running"
    assert {task["state"] for task in before[0]["tasks"]} == {"queued", "running", "succeeded"}
    assert (await archived(client))["trimmed"]["removed"] == 30
    assert await log.messages(TASKS) == 0
    for (path, params), told in zip(asked, before, strict=True):
        assert (await client.get(path, params=params)).json() == told, path
