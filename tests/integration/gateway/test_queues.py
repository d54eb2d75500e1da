"""The queues: what is told of them, pauses with real workers, and emptying them."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import pytest

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import QueuePaused, QueueResumed
from bitinglip.events.pauses import paused_lanes
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import MODELS, QUEUE, Route, ensure_consumer
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.events.task import LANES
from bitinglip.ids import TaskId
from bitinglip.settings import Settings
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.facts import Facts
from bitinglip.workers.routebook import common_routes
from bitinglip.workers.view import CardView, WorkerView
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, submitted
from tests.support.cluster import Cluster

WRITE = {"kind": "text-generation", "model": "org/writer", "params": {"prompt": "a"}, "lane": "batch"}
SLOW = ECHO | {"params": {"message": "slow", "steps": 20, "step_ms": 100}}


async def queues(client: httpx.AsyncClient) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the queues by lane and model, those of a class of their own left out."""
    told = (await client.get("/v1/queues")).json()["queues"]
    return {(queue["lane"], queue["model"]): queue for queue in told if not (queue["key"] or queue["requires"])}


async def turn(client: httpx.AsyncClient, what: str, **body: Any) -> list[str]:
    response = await client.post(f"/v1/queues:{what}", json={"model": "echo"} | body)
    assert response.status_code == 200, response.text
    return response.json()["paused_lanes"]


async def ended(client: httpx.AsyncClient, task_id: str, eventually: Any) -> str:
    """Wait for the task's end, and return its state."""

    async def state() -> str | None:
        task = (await client.get(f"/v1/tasks/{task_id}")).json()
        return task["state"] if task["state"] not in {"queued", "running"} else None

    return await eventually(state)


async def test_a_queue_tells_what_waits_and_for_how_long(
    client: httpx.AsyncClient, log: EventLog, player: Player, eventually: Any
) -> None:
    assert (await client.get("/v1/queues")).json() == {"queues": []}
    routes = [Route(lane, subjects.encode_token("org/writer")) for lane in ("interactive", "batch")]
    for route in routes:
        await ensure_consumer(log.connection.js, route, 30)
    done = [await submitted(client, WRITE) for _ in range(2)]
    await submitted(client, WRITE)
    queue = WorkQueue(log.connection, 30)
    deliveries = await eventually(lambda: queue.pull(routes[1], 2))
    for task_id in done:
        await player.run(task_id)
    waiting, running = 3 - len(deliveries), len(deliveries)

    async def told() -> bool:
        found = (await client.get("/v1/queues")).json()["queues"]
        oldest_s, wait_s = found[0].pop("oldest_s"), found[0].pop("estimated_wait_s")
        common = {"model": "org/writer", "key": None, "requires": None, "paused": False}
        return (
            oldest_s >= 0.0
            and wait_s == pytest.approx(waiting * 30, rel=0.02)
            and found
            == [
                common | {"lane": "batch", "depth": 3, "waiting": waiting, "running": running, "rate_per_s": 0.033},
                common
                | {"lane": "interactive", "depth": 0, "waiting": 0, "running": 0, "rate_per_s": 0.0}
                | {"oldest_s": None, "estimated_wait_s": 0.0},
            ]
        )

    await eventually(told)
    await queue.close()


async def test_the_oldest_one_that_waits_is_told(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    await ensure_consumer(log.connection.js, Route("normal", "echo"), 30)
    await submitted(client)

    async def older(than_s: float) -> bool:
        queue = (await queues(client))["normal", "echo"]
        return queue["oldest_s"] > than_s and queue["estimated_wait_s"] is None

    await eventually(lambda: older(0.3))
    await submitted(client)
    assert await older(0.3)


async def test_more_queues_are_listed_than_the_server_tells_at_once(client: httpx.AsyncClient, log: EventLog) -> None:
    routes = [Route("normal", encode_queue("echo", WorkClass(share=f"key-{n}"))) for n in range(300)]
    await asyncio.gather(*[ensure_consumer(log.connection.js, route, 30) for route in routes])
    assert {state.route for state in await log.queue_states()} == set(routes)
    told = (await client.get("/v1/queues")).json()["queues"]
    assert {queue["key"] for queue in told} == {f"key-{n}" for n in range(300)}


async def test_what_is_paused_waits_over_a_restart_of_its_worker_and_runs_when_it_is_resumed(
    client: httpx.AsyncClient, log: EventLog, cluster: Cluster, eventually: Any
) -> None:
    worker = await cluster.worker()
    assert await ended(client, await submitted(client), eventually) == "succeeded"
    runs = await submitted(client, SLOW)

    async def started() -> bool:
        return (await client.get(f"/v1/tasks/{runs}")).json()["state"] == "running"

    await eventually(started)
    assert await turn(client, "pause", reason="a test") == ["batch", "interactive", "normal"]
    waits = [await submitted(client, ECHO | {"lane": lane}) for lane in ("interactive", "normal", "batch")]
    assert await ended(client, runs, eventually) == "succeeded"
    worker.signal(signal.SIGTERM)
    await worker.wait()
    await cluster.worker()
    other = await submitted(client)
    states = {(await client.get(f"/v1/tasks/{task_id}")).json()["state"] for task_id in (*waits, other)}
    assert states == {"queued"}
    assert all(queue["paused"] and queue["waiting"] for queue in (await queues(client)).values())
    assert await turn(client, "resume", lane="interactive") == ["batch", "normal"]
    assert await ended(client, waits[0], eventually) == "succeeded"
    assert [len(await log.read_task(TaskId(task_id))) for task_id in waits[1:]] == [1, 1]
    assert await turn(client, "resume") == []
    for task_id in (*waits, other):
        assert await ended(client, task_id, eventually) == "succeeded"


async def test_a_request_that_stands_gets_nothing_in_a_pause_and_work_at_its_end(
    client: httpx.AsyncClient, log: EventLog, eventually: Any
) -> None:
    queue = WorkQueue(log.connection, 30)
    route = Route("normal", "echo")
    await queue.ensure([route])
    waits = asyncio.create_task(queue.wait([route], 1))

    async def stands() -> bool:
        return bool((await log.connection.js.consumer_info(QUEUE, route.consumer)).num_waiting)

    await eventually(stands)
    await turn(client, "pause")
    task_id = await submitted(client)

    async def queued() -> bool:
        return (await queues(client))["normal", "echo"]["waiting"] == 1

    await eventually(queued)
    assert not waits.done()
    await turn(client, "resume")
    (delivery,) = await asyncio.wait_for(waits, 10)  # a request that is not woken stands for 20 s
    assert delivery.event.event.model_dump()["task_id"] == task_id
    await queue.ensure([route])  # declared again, as by a worker that starts
    assert not (await queues(client))["normal", "echo"]["paused"]
    await queue.close()


async def test_a_pause_is_a_fact_once(client: httpx.AsyncClient, log: EventLog) -> None:
    await turn(client, "pause", lane="batch", reason="repairs")
    await turn(client, "pause", lane="batch", reason="again")
    await turn(client, "resume")
    await turn(client, "resume")
    subject = subjects.model_subject("echo", "queue_{}")
    told = [await log.read_last(MODELS, subject.format(what)) for what in ("paused", "resumed")]
    assert [recorded and recorded.event for recorded in told] == [
        QueuePaused(model="echo", lane="batch", by=None, reason="repairs"),
        QueueResumed(model="echo", lane=None, by=None),
    ]
    assert await log.last_sequence(MODELS) == 3 + 2  # three models are registered


async def test_requests_that_cross_each_other_end_as_the_log_says(client: httpx.AsyncClient, log: EventLog) -> None:
    for _ in range(10):
        await asyncio.gather(turn(client, "pause"), turn(client, "resume"), turn(client, "pause", lane="batch"))
        said = await paused_lanes(log.connection, "echo")
        assert {state.route.lane for state in await log.queue_states() if state.paused} == said


async def test_a_queue_keeps_its_workers_lease_over_a_pause(client: httpx.AsyncClient, log: EventLog) -> None:
    routes = [Route(lane, encode_queue("echo")) for lane in LANES]
    await ensure_consumer(log.connection.js, routes[0], 60)
    assert set(await turn(client, "pause")) == set(LANES)
    await turn(client, "resume")
    states = {state.route: state.lease_s for state in await log.queue_states()}
    assert states == {routes[0]: 60, **dict.fromkeys(routes[1:], 10)}


async def test_a_queue_that_is_opened_in_a_pause_is_paused(client: httpx.AsyncClient, log: EventLog) -> None:
    await turn(client, "pause", lane="normal")
    for lane in ("normal", "batch"):
        await submitted(client, ECHO | {"lane": lane, "requires": {"label": "eu"}})
    found = {state.route.lane: state.paused for state in await log.queue_states() if "~" in state.route.queue}
    assert found == {"normal": True, "batch": False}
    await turn(client, "resume")
    assert not any(state.paused for state in await log.queue_states())


async def test_other_models_are_not_paused(client: httpx.AsyncClient, log: EventLog) -> None:
    for model in ("echo", "org/writer"):
        await ensure_consumer(log.connection.js, Route("normal", encode_queue(model)), 30)
    await turn(client, "pause", model="org/writer")
    found = await queues(client)
    assert {key for key, queue in found.items() if queue["paused"]} == {
        (lane, "org/writer") for lane in ("interactive", "normal", "batch")
    }
    assert found["normal", "echo"]["paused"] is False


async def test_what_is_paused_is_nothing_to_load_a_model_for(
    client: httpx.AsyncClient, log: EventLog, settings: Settings, eventually: Any
) -> None:
    specs = [ModelSpec(kind="echo", reference="echo"), ModelSpec(kind="text-generation", reference="org/writer")]
    for route in [Route(lane, encode_queue(spec.reference)) for lane in LANES for spec in specs]:
        await ensure_consumer(log.connection.js, route, 30)
    await turn(client, "pause")
    await submitted(client)
    await submitted(client, WRITE)

    async def queued() -> bool:
        return sum(queue["waiting"] for queue in (await queues(client)).values()) == 2

    await eventually(queued)
    view = WorkerView(common_routes(spec.reference for spec in specs), card=CardView("w"))
    facts = Facts(log, settings, "w", specs)
    await facts.start(lambda: view, lambda: None)
    seen = facts.view(view).routes
    await facts.close()
    depths = {name: [route.depth for route in routes] for name, routes in seen.items()}
    assert depths == {"echo": [0, 0, 0], "org/writer": [0, 0, 1]}


async def test_emptying_a_queue_ends_each_task_that_waits(
    client: httpx.AsyncClient, log: EventLog, player: Player
) -> None:
    waiting = [await submitted(client) for _ in range(3)]
    later, other = await submitted(client, ECHO | {"delay_s": 60}), await submitted(client, ECHO | {"lane": "batch"})
    runs = await submitted(client)
    await player.assign(runs)
    body = {"model": "echo", "lane": "normal", "reason": "wrong model"}
    dry = (await client.post("/v1/queues:purge", json=body | {"dry_run": True})).json()
    assert (dry["matched"], sorted(dry["task_ids"]), dry.get("cancelled")) == (4, sorted([*waiting, later]), None)
    first = (await client.post("/v1/queues:purge", json=body | {"limit": 3})).json()
    rest = (await client.post("/v1/queues:purge", json=body | {"cursor": first["next_cursor"]})).json()
    assert (first["cancelled"], rest["cancelled"], rest["next_cursor"]) == (3, 1, None)
    for task_id in (*waiting, later):
        last = (await log.read_task(TaskId(task_id)))[-1]
        assert (last.type, last.event.model_dump()["reason"]) == ("task.cancelled", "wrong model")
    states = [(await client.get(f"/v1/tasks/{task_id}")).json()["state"] for task_id in (other, runs)]
    assert states == ["queued", "running"]
    assert (await log.connection.js.stream_info(QUEUE)).state.messages == 2


@pytest.mark.parametrize("what", ["pause", "resume", "purge"])
@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "model"), ({"model": "echo", "lane": "fast"}, "lane"), ({"model": "echo", "nonsense": 1}, "nonsense")],
)
async def test_a_wrong_body_is_refused(client: httpx.AsyncClient, what: str, body: dict[str, Any], field: str) -> None:
    problem = check_problem(await client.post(f"/v1/queues:{what}", json=body), 422, "invalid_input")
    assert problem["field"] == field


async def test_a_model_without_queues_is_not_found(client: httpx.AsyncClient, log: EventLog) -> None:
    check_problem(await client.post("/v1/queues:pause", json={"model": UNKNOWN_ID}), 404, "queue_not_found")
    assert await log.last_sequence(MODELS) == 3
    check_problem(await client.post("/v1/queues:pause", content="{", headers=JSON), 400, "malformed_body")


JSON = {"Content-Type": "application/json"}
