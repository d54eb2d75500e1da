"""Schedules over HTTP, on the real log: they fire, once a time, and as their policies say."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import httpx
import orjson
import pytest

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.streams import SCHEDULES, TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.settings import Gateway, Settings
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.scheduler import Scheduler
from bitinglip.tasks.schedules import CreateSchedule
from tests.integration.gateway.support import ECHO, UNKNOWN_ID, Player, check_problem, running
from tests.support.server import eventually

NIGHTLY: dict[str, Any] = {"cron": "0 3 * * *", "time_zone": "Europe/Berlin", "task": ECHO, "name": "nightly"}


async def make(client: httpx.AsyncClient, **changes: Any) -> dict[str, Any]:
    response = await client.post("/v1/schedules", json=NIGHTLY | changes)
    assert response.status_code == 201, response.text
    return response.json()


async def every(client: httpx.AsyncClient, seconds: float, **changes: Any) -> str:
    body = {name: value for name, value in NIGHTLY.items() if name != "cron"} | {"every_s": seconds} | changes
    response = await client.post("/v1/schedules", json=body)
    assert response.status_code == 201, response.text
    return response.json()["schedule_id"]


async def fired(log: EventLog, schedule_id: str) -> list[dict[str, Any]]:
    """Return what became of the schedule's times."""
    from bitinglip.events.direct import get_after

    subject = f"bl.schedule.{schedule_id}.fired"
    found = await get_after(log.connection, SCHEDULES, subject, 0)
    return [orjson.loads(message.payload)["data"] for message in found]


async def fired_times(log: EventLog, schedule_id: str, least: int) -> list[dict[str, Any]]:
    async def enough() -> list[dict[str, Any]] | None:
        found = await fired(log, schedule_id)
        return found if len(found) >= least else None

    return await eventually(enough)


async def test_a_schedule_is_made_shown_paused_resumed_and_deleted(client: httpx.AsyncClient) -> None:
    made = await make(client)
    path = f"/v1/schedules/{made['schedule_id']}"
    assert (made["state"], made["name"], made["last"]) == ("active", "nightly", None)
    assert made["task"]["params"] == ECHO["params"]
    assert datetime.fromisoformat(made["next_at"]) > datetime.fromisoformat(made["created_at"])
    assert (await client.get(path)).json() == made
    assert (await client.get("/v1/schedules")).json() == {"schedules": [made]}
    for _ in range(2):
        paused = (await client.post(f"{path}/pause")).json()
        assert (paused["state"], paused["next_at"]) == ("paused", None)
    resumed = (await client.post(f"{path}/resume")).json()
    assert (resumed["state"], resumed["next_at"]) == ("active", made["next_at"])
    assert (await client.delete(path)).json() == {"schedule_id": made["schedule_id"], "state": "deleted"}
    assert (await client.get("/v1/schedules")).json() == {"schedules": []}
    for answer in (await client.get(path), await client.post(f"{path}/pause"), await client.delete(path)):
        check_problem(answer, 404, "schedule_not_found")


async def test_what_cannot_be_is_refused_by_name(client: httpx.AsyncClient) -> None:
    refused = [
        ({"cron": "never"}, "cron"),
        ({"task": ECHO | {"delay_s": 5}}, "task.delay_s"),
        ({"time_zone": "Mars/Base"}, "time_zone"),
    ]
    for change, field in refused:
        problem = check_problem(await client.post("/v1/schedules", json=NIGHTLY | change), 422, "invalid_input")
        assert problem["field"] == field
    body = NIGHTLY | {"task": ECHO | {"model": "nobody/has"}}
    check_problem(await client.post("/v1/schedules", json=body), 422, "unknown_model")
    check_problem(await client.get(f"/v1/schedules/{UNKNOWN_ID}"), 404, "schedule_not_found")
    check_problem(await client.get("/v1/schedules/nonsense"), 422, "invalid_input")


async def test_each_time_is_one_task_and_an_unended_one_is_waited_for(
    client: httpx.AsyncClient, log: EventLog, player: Player
) -> None:
    schedule_id = await every(client, 1)
    first, second = (await fired_times(log, schedule_id, 2))[:2]
    assert [first["outcome"], second["outcome"]] == ["submitted", "overlapped"]
    assert second["task_id"] == first["task_id"]
    await player.run(first["task_id"])
    submitted = (await player.task(first["task_id"])).submitted
    assert isinstance(submitted, TaskSubmitted)
    assert submitted.metadata["schedule_id"] == schedule_id

    async def another() -> bool:
        return len({each["task_id"] for each in await fired(log, schedule_id)}) == 2

    await eventually(another)
    shown = (await client.get(f"/v1/schedules/{schedule_id}")).json()
    assert shown["last"]["task_id"] != first["task_id"]
    await client.post(f"/v1/schedules/{schedule_id}/pause")


async def test_overlapping_tasks_if_they_are_allowed(client: httpx.AsyncClient, log: EventLog) -> None:
    schedule_id = await every(client, 1, overlap="allow")
    found = await fired_times(log, schedule_id, 2)
    assert {each["outcome"] for each in found} == {"submitted"}
    assert len({each["task_id"] for each in found}) == len(found)


async def test_two_gateways_fire_a_time_once(
    client: httpx.AsyncClient, log: EventLog, settings: Settings, tmp_path: Any
) -> None:
    other = settings.model_copy(update={"data_dir": tmp_path / "other", "gateway": Gateway(port=0)})
    async with running(other):
        schedule_id = await every(client, 1, overlap="allow")
        found = await fired_times(log, schedule_id, 3)
    due = [each["due_at"] for each in found]
    assert len(set(due)) == len(due)
    tasks = await log.subjects_of(TASKS, "bl.task.*.submitted.>")
    assert len(tasks) in {len(found), len(found) + 1}


@pytest.fixture
def scheduler(log: EventLog) -> Scheduler:
    """Of a gateway that is not running."""
    return Scheduler(log, Inbox(log, inline_max_bytes=1024))


async def due(log: EventLog, scheduler: Scheduler, schedule_id: str, at: datetime) -> None:
    payload = orjson.dumps({"due_at": at})
    await scheduler._react(subjects.alarm_due(schedule_id), payload)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(("catch_up", "outcome"), [("once", "submitted"), ("skip", "missed")])
async def test_after_a_downtime_missed_times_come_to_one_task_or_none(
    log: EventLog, scheduler: Scheduler, catch_up: Any, outcome: str
) -> None:
    made = await scheduler.create(CreateSchedule(every_s=60, task=ECHO, catch_up=catch_up), None)
    log.clock = lambda: made.created_at + timedelta(hours=5)
    await due(log, scheduler, made.id, made.created_at + timedelta(seconds=60))
    after = await scheduler.read(made.id)
    assert after.last is not None
    assert after.last.outcome == outcome
    assert after.since == made.created_at + timedelta(hours=5)


async def test_a_firing_that_comes_twice_is_one_task(log: EventLog, scheduler: Scheduler) -> None:
    made = await scheduler.create(CreateSchedule(every_s=60, task=ECHO), None)
    at = made.created_at + timedelta(seconds=60)
    await scheduler._submit(made, at)  # pyright: ignore[reportPrivateUsage]  (and died before `fired`)
    for _ in range(2):
        await due(log, scheduler, made.id, at)
    assert len(await log.subjects_of(TASKS, "bl.task.>")) == 1
    assert [each["outcome"] for each in await fired(log, made.id)] == ["submitted"]


async def test_what_is_refused_at_its_time_is_told(log: EventLog, scheduler: Scheduler) -> None:
    command = CreateSchedule.model_construct(every_s=60.0, task={"kind": "gone", "model": "echo"})
    made = await scheduler.create(command, None)
    await due(log, scheduler, made.id, made.created_at + timedelta(seconds=60))
    (told,) = await fired(log, made.id)
    assert told["outcome"] == "refused"
    assert "task.kind" in told["problem"]
