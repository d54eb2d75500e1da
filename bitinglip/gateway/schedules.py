"""Schedules: make, list, look at, pause, resume, delete."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput
from bitinglip.events.schedule import CatchUp, Outcome, Overlap
from bitinglip.gateway import admission, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.ids import is_ulid
from bitinglip.tasks import media
from bitinglip.tasks.schedules import CreateSchedule, Schedule, next_due


class LastFiring(BaseModel):
    """What became of a schedule's last time."""

    due_at: datetime
    outcome: Outcome
    task_id: str | None
    problem: str | None


class ScheduleShown(BaseModel):
    """A schedule, as it is answered."""

    schedule_id: str
    name: str | None
    state: Literal["active", "paused"]
    cron: str | None
    time_zone: str
    every_s: float | None
    overlap: Overlap
    catch_up: CatchUp
    task: dict[str, Any]
    created_at: datetime
    next_at: datetime | None
    last: LastFiring | None


async def create(request: Request) -> Response:
    """Answer `POST /v1/schedules`."""
    gateway = gateway_of(request)
    requests.only(request)
    body = await requests.read_json(request, gateway.settings.gateway.max_body_bytes)
    asked = CreateSchedule.from_json(body)
    command = asked.command()
    await admission.admit(gateway, command.model, command.kind)
    resolved = await media.resolve(gateway.log, command, keep_data=gateway.inbox.is_private(command.private))
    asked = asked.model_copy(update={"task": asked.task | {"params": resolved.params}})
    schedule = await gateway.scheduler.create(asked, gateway.key_id)
    return json(await _shown(gateway, schedule), 201, {"Location": f"/v1/schedules/{schedule.id}"})


async def list_schedules(request: Request) -> Response:
    """Answer `GET /v1/schedules`: the oldest first."""
    requests.only(request)
    gateway = gateway_of(request)
    found = await gateway.scheduler.list()
    return json({"schedules": [await _shown(gateway, schedule) for schedule in found]})


async def get_schedule(request: Request) -> Response:
    """Answer `GET /v1/schedules/{schedule_id}`."""
    requests.only(request)
    gateway = gateway_of(request)
    return json(await _shown(gateway, await gateway.scheduler.read(_id(request))))


async def pause(request: Request) -> Response:
    """Answer `POST /v1/schedules/{schedule_id}/pause`."""
    requests.only(request)
    gateway = gateway_of(request)
    return json(await _shown(gateway, await gateway.scheduler.pause(_id(request), gateway.key_id)))


async def resume(request: Request) -> Response:
    """Answer `POST /v1/schedules/{schedule_id}/resume`."""
    requests.only(request)
    gateway = gateway_of(request)
    return json(await _shown(gateway, await gateway.scheduler.resume(_id(request), gateway.key_id)))


async def delete(request: Request) -> Response:
    """Answer `DELETE /v1/schedules/{schedule_id}`: its tasks stay."""
    requests.only(request)
    gateway = gateway_of(request)
    schedule_id = _id(request)
    await gateway.scheduler.delete(schedule_id, gateway.key_id)
    return json({"schedule_id": schedule_id, "state": "deleted"})


def _id(request: Request) -> str:
    schedule_id = request.path_params["schedule_id"]
    if not is_ulid(schedule_id):
        raise InvalidInput(
            field="schedule_id", problem="must be a ULID: 26 characters, as in 01JZ0000000000000000000000"
        )
    return schedule_id


async def _shown(gateway: Gateway, schedule: Schedule) -> dict[str, Any]:
    return shown(schedule, await gateway.scheduler.task_of(schedule))


async def shown_now(gateway: Gateway) -> list[dict[str, Any]]:
    """Return all schedules as they are answered, the oldest first.

    Raises:
        NoServer: the log cannot be asked.
    """
    return [await _shown(gateway, schedule) for schedule in await gateway.scheduler.list()]


def shown(schedule: Schedule, task: dict[str, Any]) -> dict[str, Any]:
    """Return a schedule as it is answered; `task` is the body that it submits."""
    last = schedule.last
    created = schedule.created.model_dump(exclude={"key_id", "schedule_id", "sealed"})
    return {
        "schedule_id": schedule.id,
        "state": schedule.state,
        **created,
        "task": task,
        "created_at": schedule.created_at,
        "next_at": next_due(schedule),
        "last": last and last.model_dump(include={"due_at", "outcome", "task_id", "problem"}),
    }
