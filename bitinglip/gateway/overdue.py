"""Tasks and schedules whose time has come, and nothing has told: each gateway looks for them, and does what is due.

Timers, expiries, releases and alarms are messages of the server's, to which a gateway reacts; without the reaction a
task waits for ever, as was seen while servers, lines and gateways were struck. And of three servers, one of which was
struck, QUEUE was seen to lack what it should have had from TASKS (nats-server 2.15.1). So what the read model knows to
be overdue, and some of what it has as queued for long, is looked at in the log and in QUEUE, and done; of two gateways
one gets in.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from datetime import timedelta

from bitinglip.errors import BitingLipError
from bitinglip.events.ending import end
from bitinglip.events.log import EventLog
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.scheduler import Scheduler

log = logging.getLogger(__name__)

LOOK_S = 10.0
LATE = timedelta(seconds=10)
"""What has been due for so long is overdue: a timer that was only a little late has fired by then."""
MOST = 100
"""Tasks of each of both kinds that are looked at in one look."""
LOOKS_A_SCHEDULE = 6
"""Schedules, which are few and come by the minute, are looked at in one look of so many."""


class OverdueWork:
    """Looks for overdue tasks as long as it is open."""

    def __init__(self, event_log: EventLog, readmodel: ReadModel, reactor: Reactor, scheduler: Scheduler) -> None:
        self._log = event_log
        self._readmodel = readmodel
        self._reactor = reactor
        self._scheduler = scheduler
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, once the read model has caught up."""
        self._task = asyncio.create_task(self._run(), name="overdue work")

    async def close(self) -> None:
        """Look no more."""
        await end(lambda: [self._task])

    async def look(self, late: timedelta = LATE) -> list[str]:
        """Look once; returns the tasks for which something was done. One for which that fails holds up no others.

        Raises:
            BitingLipError: the read model cannot be asked.
        """
        before = self._log.clock() - late
        overdue = await self._readmodel.queries.overdue(before, MOST)
        overdue += await self._readmodel.queries.queued_before(before, MOST)
        return [task_id for task_id in overdue if await self._is_mended(TaskId(task_id))]

    async def _is_mended(self, task_id: TaskId) -> bool:
        try:
            mended = await self._reactor.do_what_is_due(task_id)
        except BitingLipError as error:
            log.debug("task %s: it is looked at again: %s", task_id, error)
            return False
        if mended:
            log.warning("task %s: what was due about it had been lost; it goes on", task_id)
        return mended

    async def _run(self) -> None:
        await self._readmodel.wait_ready()
        for number in itertools.count(1):
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
                for schedule_id in [] if number % LOOKS_A_SCHEDULE else await self._scheduler.fire_overdue(LATE):
                    log.warning("schedule %s: its alarm had been lost; it fires", schedule_id)
            except BitingLipError as error:
                log.debug("no look for overdue work: %s", error)
