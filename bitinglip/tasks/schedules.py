"""A schedule as a fold over its events, when it fires next, and what a firing comes to: pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, NamedTuple, Self
from zoneinfo import ZoneInfo, available_timezones

import orjson
from cronsim import CronSim, CronSimError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bitinglip.errors import InvalidInput, MalformedBody
from bitinglip.events.envelope import Recorded
from bitinglip.events.schedule import (
    CatchUp,
    Outcome,
    Overlap,
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleFired,
    SchedulePaused,
    ScheduleResumed,
)
from bitinglip.tasks.commands import SubmitTask, invalid_input

LATE = timedelta(seconds=60)
"""A firing that is later than this missed its time: what happens then, the catch-up policy says."""
TIMES = ("run_at", "delay_s", "expires_at", "depends_on")
CRON_FIELDS = 5


class CreateSchedule(BaseModel):
    """Ask for a schedule: the body of `POST /v1/schedules`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=100, description="The caller's own name for it.")
    cron: Annotated[str, Field(max_length=200)] | None = Field(
        default=None, description="Minute, hour, day of the month, month and day of the week, as `0 3 * * mon-fri`."
    )
    time_zone: str = Field(default="UTC", max_length=64, description="Time zone of `cron`, as `Europe/Berlin`.")
    every_s: float | None = Field(
        default=None, ge=1, le=31_622_400, description="Seconds between two firings; in place of `cron`."
    )
    task: dict[str, Any] = Field(description="What is submitted: a body of `POST /v1/tasks` without times.")
    overlap: Overlap = Field(
        default="skip", description="Whether to fire while the task of the time before has not ended."
    )
    catch_up: CatchUp = Field(
        default="once", description="After times that were missed: one task at once, or none until the next time."
    )

    @field_validator("cron")
    @classmethod
    def _readable(cls, cron: str | None) -> str | None:
        if cron is not None:
            if len(cron.split()) != CRON_FIELDS:
                raise ValueError(f"has not the {CRON_FIELDS} fields minute, hour, day, month, day of the week")
            try:
                next(CronSim(cron, datetime(2026, 1, 1, tzinfo=UTC)))
            except (CronSimError, StopIteration) as error:
                raise ValueError(str(error) or "has no time") from error
        return cron

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"there is no time zone {name!r}")
        return name

    @model_validator(mode="after")
    def _one_rhythm(self) -> Self:
        if (self.cron is None) == (self.every_s is None):
            raise ValueError("give one of cron and every_s")
        return self

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body, the task that it describes included.

        Raises:
            MalformedBody: it is not JSON in UTF-8.
            InvalidInput: a field is refused; the error names it.
        """
        try:
            made = cls.model_validate(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise MalformedBody(problem=str(error)) from error
        except ValidationError as error:
            raise invalid_input(error) from error
        made.command()
        return made

    def command(self) -> SubmitTask:
        """Return what is submitted at each time.

        Raises:
            InvalidInput: a field of the task is refused; the error names it.
        """
        for name in TIMES:
            if self.task.get(name) is not None:
                raise InvalidInput(field=f"task.{name}", problem="the schedule says when")
        return submission(self.task)


def submission(task: dict[str, Any]) -> SubmitTask:
    """Return what a schedule submits.

    Raises:
        InvalidInput: a field is refused; the error names it.
    """
    try:
        command = SubmitTask.model_validate(task)
    except ValidationError as error:
        raise invalid_input(error, "task") from error
    command.checked_params()
    return command


class Schedule(NamedTuple):
    """A schedule as its events tell it; the last event of each type is enough."""

    id: str
    created: ScheduleCreated
    created_at: datetime
    since: datetime
    """Times up to this one have passed: they were fired, or fell into a pause."""
    sequence: int
    state: Literal["active", "paused", "deleted"] = "active"
    last: ScheduleFired | None = None


def fold_schedule(history: Iterable[Recorded]) -> Schedule | None:
    """Return the schedule that these events tell, in their order; none without its creation."""
    schedule: Schedule | None = None
    for recorded in sorted(history, key=lambda recorded: recorded.sequence):
        schedule = _evolve(schedule, recorded)
    return schedule


def _evolve(schedule: Schedule | None, recorded: Recorded) -> Schedule | None:
    event, sequence, at = recorded.event, recorded.sequence, recorded.time
    if schedule is None:
        if not isinstance(event, ScheduleCreated):
            return None
        return Schedule(event.schedule_id, event, at, at, sequence)
    match event:
        case SchedulePaused():
            return schedule._replace(sequence=sequence, state="paused")
        case ScheduleResumed():
            return schedule._replace(sequence=sequence, state="active", since=at)
        case ScheduleDeleted():
            return schedule._replace(sequence=sequence, state="deleted")
        case ScheduleFired():
            return schedule._replace(sequence=sequence, since=max(schedule.since, at, event.due_at), last=event)
        case _:
            return schedule._replace(sequence=sequence)


def next_due(schedule: Schedule) -> datetime | None:
    """Return its next time, in UTC; none while it does not fire."""
    if schedule.state != "active":
        return None
    created = schedule.created
    if created.every_s is not None:
        passed = (schedule.since - schedule.created_at).total_seconds() / created.every_s
        return schedule.created_at + timedelta(seconds=created.every_s * (math.floor(passed + 1e-9) + 1))
    assert created.cron is not None
    local = schedule.since.astimezone(ZoneInfo(created.time_zone))
    return next(CronSim(created.cron, local)).astimezone(UTC)


def is_stale(schedule: Schedule, due_at: datetime) -> bool:
    """Tell whether an alarm means nothing any more: the schedule does not fire now, or was fired for this time."""
    return schedule.state != "active" or due_at <= schedule.since


def decide_firing(schedule: Schedule, due_at: datetime, now: datetime, *, running: bool) -> Outcome:
    """Return what a firing comes to; `running`: the task of the time before has not ended."""
    if now - due_at > LATE and schedule.created.catch_up == "skip":
        return "missed"
    return "overlapped" if running and schedule.created.overlap == "skip" else "submitted"
