"""Tasks for models that are not there yet: accepted, refused, and what is told of them while they wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelRegistered
from bitinglip.events.worker import WorkerStarted
from bitinglip.settings import Gateway, Models, Nats, Settings
from tests.integration.gateway import modelfacts
from tests.integration.gateway.modelfacts import AT, GPT2, OTHER
from tests.integration.gateway.support import Player, check_problem, register, running, submitted

WRITE: dict[str, Any] = {"kind": "text-generation", "model": GPT2, "params": {"prompt": "x"}}


@pytest.fixture
async def node(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> str:
    """A node, and a model that it is to have."""
    await modelfacts.node(log, "n1")
    await modelfacts.describe(log)

    async def known() -> bool:
        rows = (await client.get("/v1/nodes")).json()["nodes"]
        return any(row["disk_free_bytes"] for row in rows)

    await eventually(known)
    assert (await client.post("/v1/models", json={"model": AT, "nodes": ["n1"]})).status_code == 202
    return "n1"


async def waiting_for(client: httpx.AsyncClient, task_id: str) -> dict[str, Any] | None:
    return (await client.get(f"/v1/tasks/{task_id}")).json().get("waiting_for")


async def test_a_task_for_a_model_that_comes_waits_and_says_for_what(
    client: httpx.AsyncClient, log: EventLog, player: Player, node: str
) -> None:
    task_id = await submitted(client, WRITE)
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "queued"
    told = await waiting_for(client, task_id)
    assert told is not None
    assert (told["model"], told["node_id"], told["status"], told["problem"]) == (AT, node, "wanted", None)
    await modelfacts.start_fetch(log, node)
    await modelfacts.tick(log, node, 320)

    async def ticked() -> dict[str, Any] | None:
        await client.get("/v1/models")  # this gateway has heard of it by then
        return await waiting_for(client, task_id)

    told = await ticked()
    assert told is not None
    assert (told["status"], told["done_bytes"], told["left_s"]) == ("fetching", 320, 5.6)
    await modelfacts.store(log, node)
    told = await ticked()
    assert told is not None
    assert (told["status"], "no worker serves it yet" in told["problem"]) == ("stored", True)
    await register(log, "text-generation", GPT2)
    assert await ticked() is None
    await player.run(task_id, text="y")
    assert "waiting_for" not in (await client.get(f"/v1/tasks/{task_id}")).json()


async def test_a_fetch_that_fails_for_good_is_told_and_new_tasks_are_refused(
    client: httpx.AsyncClient, log: EventLog, node: str
) -> None:
    task_id = await submitted(client, WRITE)
    await modelfacts.fail(log, node, retry_in_s=3.0, message="The hub is away.", remedy="Wait.")
    await client.get("/v1/models")
    again = await waiting_for(client, task_id)
    assert again is not None
    assert (again["status"], again["problem"], again["remedy"]) == ("failed", "The hub is away.", "Wait.")
    assert again["retry_at"] is not None
    await submitted(client, WRITE)
    await modelfacts.fail(log, node, remedy="Make room.")
    await client.get("/v1/models")
    told = await waiting_for(client, task_id)
    assert told is not None
    assert (told["code"], told["problem"]) == ("disk_full", "It takes 551 MB, and 120 MB are free.")
    assert told["remedy"] == f"Make room. `bitinglip model download {AT}` asks for it anew."
    problem = check_problem(await client.post("/v1/tasks", json=WRITE), 409, "model_not_fetched")
    assert (problem["node_id"], f"bitinglip model download {GPT2}" in problem["detail"]) == (node, True)
    assert (await client.post("/v1/models", json={"model": AT, "nodes": [node]})).json()["asked"] == [node]
    await submitted(client, WRITE)
    assert (await client.delete(f"/v1/tasks/{task_id}")).status_code == 200


async def test_a_fetch_that_nobody_wants_any_more_is_told(client: httpx.AsyncClient, node: str) -> None:
    task_id = await submitted(client, WRITE)
    await client.post(f"/v1/models/{AT}/cancel")
    told = await waiting_for(client, task_id)
    assert told is not None
    assert (told["status"], told["problem"]) == ("stopped", "No node is to have it any more.")


async def test_a_model_that_every_node_dropped_is_served_no_more(
    client: httpx.AsyncClient, log: EventLog, node: str, eventually: Any
) -> None:
    registered = {"reference": GPT2, "revision": modelfacts.COMMIT}
    await modelfacts.tell(log, ModelRegistered.model_validate(ModelRegistered.example | registered))
    await modelfacts.store(log, node)
    await submitted(client, WRITE)
    await modelfacts.drop(log, node)

    async def refused() -> bool:
        return (await client.post("/v1/tasks", json=WRITE)).status_code == 422

    await eventually(refused)
    models = [{"kind": "text-generation", "reference": GPT2, "revision": modelfacts.COMMIT}]
    started = WorkerStarted.model_validate(WorkerStarted.example | {"models": models})
    subject = subjects.worker_subject(started.worker_id, "started")
    await log.append(log.fact_append(started, subject, started.worker_id))

    async def taken() -> bool:
        return (await client.post("/v1/tasks", json=WRITE)).status_code == 202

    await eventually(taken)


async def test_the_tasks_stream_has_the_models_ticks_without_ids(
    client: httpx.AsyncClient, log: EventLog, player: Player, node: str
) -> None:
    task_id = await submitted(client, WRITE)
    seen: list[tuple[str, str | None]] = []
    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        async for name, event_id, data in _events(response):
            seen.append((name, event_id))
            if name == "model.waiting":
                assert data["data"]["status"] == "wanted"
                await modelfacts.start_fetch(log, node)
                await modelfacts.tick(log, node, 7)
            if name == "model.fetch_progressed":
                assert data["data"]["done_bytes"] == 7
                await modelfacts.store(log, node)
                await register(log, "text-generation", GPT2)
                await player.run(task_id, text="y")
    told = [name for name, event_id in seen if event_id is None]
    own = [name for name, event_id in seen if event_id is not None]
    assert told[:3] == ["model.waiting", "model.fetch_started", "model.fetch_progressed"]
    assert own == ["task.submitted", "task.assigned", "task.succeeded"]


async def test_a_submission_that_streams_has_them_as_well(
    client: httpx.AsyncClient, log: EventLog, player: Player, node: str
) -> None:
    names: list[str] = []
    accept = {"Accept": "text/event-stream"}
    async with client.stream("POST", "/v1/tasks", json=WRITE, headers=accept) as response:
        async for name, _, data in _events(response):
            names.append(name)
            if {"task.submitted", "model.waiting"} <= set(names) and "task.assigned" not in names:
                await player.run(response.headers["location"].rpartition("/")[2], text="y")
                names.append("task.assigned")
            assert data
    assert names[-1] == "task.succeeded"


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield each event's name, id (none without one) and data."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line == "":
            if fields:
                yield fields["event"], fields.get("id"), orjson.loads(fields["data"])
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def test_a_model_of_another_kind_does_not_come_for_it(client: httpx.AsyncClient, node: str) -> None:
    problem = check_problem(await client.post("/v1/tasks", json=WRITE | {"kind": "embedding", "params": {
        "input": ["x"]}}), 422, "unknown_model")  # fmt: skip
    assert f"bitinglip model download {GPT2}" in problem["detail"]


async def test_a_batch_and_a_schedule_may_wait_as_well(client: httpx.AsyncClient, node: str) -> None:
    assert (await client.post("/v1/batches", json={"tasks": [WRITE, WRITE]})).status_code == 202
    assert (await client.post("/v1/schedules", json={"every_s": 900, "task": WRITE})).status_code == 201


# --- with auto-download -----------------------------------------------------------------------------------------------


@pytest.fixture
def choosing(nats_url: str, tmp_path: Path) -> Settings:
    """Settings of a gateway that has models fetched by itself, and never asks the hub."""
    return Settings(
        data_dir=tmp_path / "second",
        nats=Nats(url=nats_url),
        gateway=Gateway(port=0),
        models=Models(offline=True),
    )


async def test_a_task_for_a_known_model_has_it_fetched(choosing: Settings, log: EventLog, eventually: Any) -> None:
    await modelfacts.node(log, "n1")
    await modelfacts.describe(log)
    need = {"float32": 60 * modelfacts.GIB}
    await modelfacts.describe(log, reference="org/giant", revision=OTHER, need_bytes=need)
    async with running(choosing) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:

        async def known() -> bool:
            return bool((await client.get("/v1/nodes")).json()["nodes"])

        await eventually(known)
        task_id = await submitted(client, WRITE)
        told = await waiting_for(client, task_id)
        assert told is not None
        assert (told["status"], told["node_id"]) == ("wanted", "n1")
        await submitted(client, WRITE)
        assert (await client.get(f"/v1/models/{GPT2}")).json()["nodes"] == {"wanted": ["n1"]}
        other = WRITE | {"kind": "embedding", "model": "org/giant", "params": {"input": ["x"]}}
        check_problem(await client.post("/v1/tasks", json=other), 422, "model_kind_mismatch")
        giant = await client.post("/v1/tasks", json=WRITE | {"model": "org/giant"})
        assert "as it is it fits on no card" in check_problem(giant, 409, "model_does_not_fit")["detail"]
        unheard = await client.post("/v1/tasks", json=WRITE | {"model": "no/body"})
        check_problem(unheard, 422, "unknown_model")


async def test_who_leaves_a_stream_of_a_waiting_task_leaves_nothing_behind(
    client: httpx.AsyncClient, log: EventLog, node: str, eventually: Any
) -> None:
    task_id = await submitted(client, WRITE)
    before = (await log.connection.js.stream_info("MODELS")).state.consumer_count
    for _ in range(3):
        async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
            async for name, _, _ in _events(response):
                if name == "model.waiting":
                    await modelfacts.tick(log, node, 1)
                if name == "model.fetch_progressed":
                    break

    async def gone() -> bool:
        metrics = (await client.get("/metrics")).text
        consumers = (await log.connection.js.stream_info("MODELS")).state.consumer_count
        clients = next(line for line in metrics.splitlines() if line.startswith("bitinglip_sse_clients "))
        assert (clients, consumers) == ("bitinglip_sse_clients 0.0", before)
        return True

    await eventually(gone)
