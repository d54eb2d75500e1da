"""Facts about schedules: tasks that are submitted again and again."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from bitinglip.events.registry import Event, event

Overlap = Literal["skip", "allow"]
CatchUp = Literal["once", "skip"]
Outcome = Literal["submitted", "overlapped", "missed", "refused"]

_ID = "01JZ0000000000000000000000"


class ScheduleEvent(Event):
    """Base of the facts about one schedule."""

    schedule_id: str


@event
class ScheduleCreated(ScheduleEvent):
    """A schedule was made: when it fires, and what it submits then. Either `cron` or `every_s` is given."""

    type = "schedule.created"
    example = {
        "schedule_id": _ID,
        "cron": "0 3 * * *",
        "time_zone": "Europe/Berlin",
        "task": {"kind": "echo", "model": "echo", "params": {"message": "good night"}},
    }

    name: str | None = None
    cron: str | None = None
    """Minute, hour, day of the month, month, day of the week."""
    time_zone: str = "UTC"
    every_s: float | None = None
    """Seconds between two firings, counted from the creation."""
    task: dict[str, Any]
    """Body of the submission; without its parameters if they are sealed."""
    sealed: str | None = None
    """The parameters of a private schedule, encrypted with a key of its own, in Base64."""
    overlap: Overlap = "skip"
    """Whether it fires while the task of the time before has not ended."""
    catch_up: CatchUp = "once"
    """What follows a time at which nobody could fire it: one task, or none."""
    key_id: str | None = None


@event
class SchedulePaused(ScheduleEvent):
    """It does not fire until it is resumed."""

    type = "schedule.paused"
    example = {"schedule_id": _ID, "by": None}

    by: str | None = None


@event
class ScheduleResumed(ScheduleEvent):
    """It fires again, from its next time on."""

    type = "schedule.resumed"
    example = {"schedule_id": _ID, "by": None}

    by: str | None = None


@event
class ScheduleDeleted(ScheduleEvent):
    """It never fires again."""

    type = "schedule.deleted"
    example = {"schedule_id": _ID, "by": None}

    by: str | None = None


@event
class ScheduleFired(ScheduleEvent):
    """One of its times has come: a task was submitted, or it says why not."""

    type = "schedule.fired"
    lasting = False
    example = {
        "schedule_id": _ID,
        "due_at": "2026-01-01T02:00:00Z",
        "outcome": "submitted",
        "task_id": "01JZ0000000000000000000001",
    }

    due_at: datetime
    outcome: Outcome
    """`overlapped`: the task before has not ended; `missed`: it was too late; `refused`: see `problem`."""
    task_id: str | None = None
    """The task that was submitted; if none was, that of the time before."""
    problem: str | None = None
