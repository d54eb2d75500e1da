"""Schedules and the log: commands become events, events set alarms, alarms become tasks.

    created, resumed, fired -> the alarm of the next time is set -> due -> a task is submitted -> fired -> ...

Each arrow is done again until it is in the log, by whichever gateway hears of it; doing it twice changes nothing: an
alarm takes the place of the one before, and a time has but one task id.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import orjson

from bitinglip.errors import Conflict, Denied, Rejected, ScheduleNotFound
from bitinglip.events import subjects
from bitinglip.events.keys import destroy_key
from bitinglip.events.log import EventLog
from bitinglip.events.reactions import Reactions
from bitinglip.events.schedule import (
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleEvent,
    ScheduleFired,
    SchedulePaused,
    ScheduleResumed,
)
from bitinglip.events.streams import SCHEDULES
from bitinglip.ids import TaskId, task_id_for_key
from bitinglip.tasks import privacy
from bitinglip.tasks.inbox import TRIES, Inbox
from bitinglip.tasks.schedules import (
    CreateSchedule,
    Schedule,
    decide_firing,
    fold_schedule,
    is_stale,
    next_due,
    submission,
)
from bitinglip.tasks.state import fold

FIRED_TTL_S = 30 * 86_400
"""How long the log keeps what became of a time."""


class Scheduler:
    """Makes, changes and fires schedules."""

    def __init__(self, log: EventLog, inbox: Inbox) -> None:
        self._log = log
        self._inbox = inbox
        filters = (subjects.SCHEDULES, subjects.ALARMS_DUE)
        self._reactions = Reactions(log.connection, SCHEDULES, "scheduler", filters, self._react)

    async def start(self) -> None:
        """Begin to fire.

        Raises:
            NoServer: the log cannot be reached.
        """
        await self._reactions.start()

    async def close(self) -> None:
        """End; what is in hand goes to another gateway's."""
        await self._reactions.close()

    # --- commands -----------------------------------------------------------------------------------------------------

    async def create(self, command: CreateSchedule, key_id: str | None) -> Schedule:
        """Make a schedule; the parameters of a private one are sealed.

        Raises:
            NoServer, StreamFull: the log does not take it now.
        """
        event = ScheduleCreated(schedule_id=self._log.ids(), key_id=key_id, **command.model_dump(mode="json"))
        if self._inbox.is_private(command.task.get("private")):
            event = await self._sealed(event)
        await self._log.append(self._log.schedule_append(event, 0))
        return await self.read(event.schedule_id)

    async def task_of(self, schedule: Schedule) -> dict[str, Any]:
        """Return what a schedule submits each time, its parameters included.

        Raises:
            TaskIsForgotten: it was deleted, and its parameters were sealed.
            NoServer: the server does not answer.
        """
        created = schedule.created
        if created.sealed is None:
            return created.task
        params = await privacy.open_template(self._log.connection, schedule.id, created.sealed)
        return created.task | {"params": params}

    async def read(self, schedule_id: str) -> Schedule:
        """Return a schedule.

        Raises:
            ScheduleNotFound: there is none, or it was deleted.
        """
        schedule = await self._read(schedule_id)
        if schedule is None or schedule.state == "deleted":
            raise ScheduleNotFound(schedule_id=schedule_id)
        return schedule

    async def list(self) -> list[Schedule]:
        """Return all schedules, the oldest first."""
        ids = [name.split(".")[2] for name in await self._log.subjects_of(SCHEDULES, subjects.SCHEDULES_CREATED)]
        found = [await self._read(schedule_id) for schedule_id in sorted(ids)]
        return [schedule for schedule in found if schedule is not None and schedule.state != "deleted"]

    async def pause(self, schedule_id: str, by: str | None) -> Schedule:
        """Let it fire no more for now; one that is paused stays so."""
        return await self._change(SchedulePaused(schedule_id=schedule_id, by=by), unless="paused")

    async def resume(self, schedule_id: str, by: str | None) -> Schedule:
        """Let it fire again; one that does already goes on."""
        return await self._change(ScheduleResumed(schedule_id=schedule_id, by=by), unless="active")

    async def delete(self, schedule_id: str, by: str | None) -> None:
        """Let it never fire again; its tasks stay."""
        await self._change(ScheduleDeleted(schedule_id=schedule_id, by=by), unless="deleted")
        await destroy_key(self._log.connection, schedule_id)

    async def fire_overdue(self, late: timedelta) -> list[str]:
        """Fire the schedules whose time has passed for so long: their alarms were lost. Returns which.

        Raises:
            Conflict, NoServer: it is to be tried again.
        """
        fired: list[str] = []
        for schedule in await self.list():
            due_at = next_due(schedule)
            if due_at is not None and self._log.clock() - due_at >= late:
                await self._fire(schedule, due_at)
                fired.append(schedule.id)
        return fired

    async def _sealed(self, event: ScheduleCreated) -> ScheduleCreated:
        task: dict[str, Any] = event.task | {"private": True}
        params = task.pop("params", {})
        sealed = await privacy.seal_template(self._log.connection, event.schedule_id, params)
        return event.model_copy(update={"task": task, "sealed": sealed})

    async def _change(self, event: ScheduleEvent, unless: str) -> Schedule:
        conflict: Conflict | None = None
        for _ in range(TRIES):
            schedule = await self.read(event.schedule_id)
            if schedule.state == unless:
                return schedule
            try:
                await self._log.append(self._log.schedule_append(event, schedule.sequence))
            except Conflict as error:
                conflict = error
                continue
            after = await self._read(event.schedule_id)
            assert after is not None
            return after
        assert conflict is not None
        raise conflict

    async def _read(self, schedule_id: str) -> Schedule | None:
        return fold_schedule(await self._log.read_latest(SCHEDULES, subjects.schedule_events(schedule_id)))

    # --- reactions ----------------------------------------------------------------------------------------------------

    async def _react(self, subject: str, payload: bytes) -> None:
        schedule_id = subject.split(".")[2]
        schedule = await self._read(schedule_id)
        if schedule is None:
            return
        if subject == subjects.alarm_due(schedule_id):
            await self._fire(schedule, datetime.fromisoformat(orjson.loads(payload)["due_at"]))
        elif (due_at := next_due(schedule)) is not None:
            await self._log.append(self._log.alarm_append(schedule_id, due_at))

    async def _fire(self, schedule: Schedule, due_at: datetime) -> None:
        if is_stale(schedule, due_at):
            return
        fired = await self._fired(schedule, due_at)
        await self._log.append(self._log.schedule_append(fired, schedule.sequence, ttl_s=FIRED_TTL_S))

    async def _fired(self, schedule: Schedule, due_at: datetime) -> ScheduleFired:
        outcome = decide_firing(schedule, due_at, self._log.clock(), running=await self._runs(schedule))
        fired = ScheduleFired(schedule_id=schedule.id, due_at=due_at, outcome=outcome, task_id=_task_of(schedule))
        if outcome != "submitted":
            return fired
        try:
            return fired.model_copy(update={"task_id": await self._submit(schedule, due_at)})
        except (Rejected, Denied) as error:
            return fired.model_copy(update={"outcome": "refused", "problem": str(error)})

    async def _submit(self, schedule: Schedule, due_at: datetime) -> TaskId:
        command = submission(await self.task_of(schedule))
        command = command.model_copy(update={"metadata": command.metadata | {"schedule_id": schedule.id}})
        task_id = task_id_for_key(f"schedule\0{schedule.id}", due_at.isoformat())
        key_id, cause = schedule.created.key_id, schedule.id
        return (await self._inbox.submit(command, key_id=key_id, request_id=cause, task_id=task_id)).task_id

    async def _runs(self, schedule: Schedule) -> bool:
        task_id = _task_of(schedule)
        task = None if task_id is None else fold(await self._log.read_task(task_id))
        return task is not None and not task.ended


def _task_of(schedule: Schedule) -> TaskId | None:
    """Return the task of the last time that had one; a firing without one passes it on."""
    return TaskId(schedule.last.task_id) if schedule.last is not None and schedule.last.task_id else None
