"""The timelines of a task and of the cluster."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelFetchStarted
from bitinglip.events.worker import WorkerStarted
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, submitted


async def _timeline(client: httpx.AsyncClient, task_id: str, **params: Any) -> dict[str, Any]:
    response = await client.get(f"/v1/tasks/{task_id}/timeline", params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_task_that_runs_and_then_succeeds(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    waiting = await _timeline(client, task_id)
    assert ([span["kind"] for span in waiting["spans"]], waiting["state"]) == (["waiting"], "queued")
    assert (waiting["spans"][0]["end"], waiting["end"]) == (None, None)
    await player.assign(task_id)
    progressed = await player.progress(task_id, 4)
    running = await _timeline(client, task_id, as_of=progressed)
    assert ([span["kind"] for span in running["spans"]], running["state"]) == (["waiting", "running"], "running")
    assert (running["spans"][1]["worker_id"], running["as_of"]["sequence"]) == ("w-0", progressed)
    assert (running["ticks"]["count"], running["ticks"]["sample"][0]["step"]) == (1, 4)
    ended = await player.succeed(task_id)
    told = await _timeline(client, task_id, as_of=ended)
    assert (told["state"], told["end"]["state"], told["spans"][1]["outcome"]) == ("succeeded",) * 3
    assert told["ended_at"] == told["end"]["at"] == told["spans"][-1]["end"]
    now = await _timeline(client, task_id, as_of="now")
    assert now | {"as_of": None} == told | {"as_of": None}


async def test_what_ended_it_is_told(client: httpx.AsyncClient, player: Player) -> None:
    failed, cancelled = await submitted(client), await submitted(client)
    await player.assign(failed)
    sequence = await player.fail(failed)
    end = (await _timeline(client, failed, as_of=sequence))["end"]
    assert (end["state"], end["failure"]["kind"]) == ("failed", "bad_input")
    await client.delete(f"/v1/tasks/{cancelled}", params={"reason": "enough"})
    end = (await _timeline(client, cancelled))["end"]
    assert (end["state"], end["reason"]) == ("cancelled", "enough")


async def test_what_it_waits_for_is_told(client: httpx.AsyncClient, log: EventLog) -> None:
    first = await submitted(client)
    held = await submitted(client, ECHO | {"depends_on": [first]})
    later = await submitted(client, ECHO | {"delay_s": 600})
    [span] = (await _timeline(client, held))["spans"]
    assert span["kind"] == "dependent"
    told = await _timeline(client, later)
    [span] = told["spans"]
    due_in = datetime.fromisoformat(span["due_at"]) - datetime.fromisoformat(told["submitted_at"])
    assert (span["kind"], told["state"], due_in > timedelta(seconds=590)) == ("scheduled", "scheduled", True)
    fetch = ModelFetchStarted.model_validate(ModelFetchStarted.example | {"reference": "echo"})
    await log.append(log.fact_append(fetch, subjects.model_subject("echo", "fetch_started"), "echo"))
    [told] = (await _timeline(client, first, as_of="now"))["fetches"]
    assert (told["node_id"], told["end"], told["bytes"]) == ("rig-1", None, 551_000_000)


async def test_a_task_that_is_none_has_no_timeline(client: httpx.AsyncClient) -> None:
    check_problem(await client.get(f"/v1/tasks/{UNKNOWN_ID}/timeline"), 404, "task_not_found")
    check_problem(await client.get("/v1/tasks/x/timeline"), 422, "invalid_input")


async def test_the_cluster_in_buckets(client: httpx.AsyncClient, player: Player, log: EventLog) -> None:
    started = WorkerStarted.model_validate(WorkerStarted.example)
    await log.append(log.fact_append(started, subjects.worker_subject("rig-1-0", "started"), "rig-1-0"))
    ids = [await submitted(client) for _ in range(3)]
    await player.run(ids[0])
    await player.assign(ids[1])
    await client.get("/v1/cluster", params={"as_of": "now"})  # all of it is applied after that
    answer = (await client.get("/v1/timeline", params={"buckets": 6, "from": "1 min ago"})).json()
    assert (len(answer["buckets"]), answer["bucket_s"]) == (6, 10.0)
    assert datetime.fromisoformat(answer["to"]) - datetime.fromisoformat(answer["from"]) == timedelta(minutes=1)
    last = answer["buckets"][-1]
    assert {name: last[name] for name in ("waiting", "running", "workers")} == {
        "waiting": 1,
        "running": 1,
        "workers": 1,
    }
    sums = {name: sum(bucket[name] for bucket in answer["buckets"]) for name in ("arrived", "started", "succeeded")}
    assert sums == {"arrived": 3, "started": 2, "succeeded": 1}
    before = (await client.get("/v1/timeline", params={"to": "2026-01-01T00:00:00Z", "buckets": 2})).json()
    assert all(bucket["arrived"] == bucket["running"] == 0 for bucket in before["buckets"])


async def test_ranges_that_are_none_are_refused(client: httpx.AsyncClient) -> None:
    for params in (
        {"from": "17"}, {"from": "1 h ago", "to": "2 h ago"}, {"buckets": 0}, {"buckets": 1001}, {"every": "1"},
    ):  # fmt: skip
        check_problem(await client.get("/v1/timeline", params=params), 422, "invalid_input")
    check_problem(await client.get("/v1/timeline", params={"from": "soon"}), 422, "not_a_moment")
