"""Tasks and schedules whose time has come, and nothing has told: each gateway looks for them, and does what is due.

Timers, expiries, releases and alarms are messages of the server's, to which a gateway reacts; without the reaction a
task waits for ever, as was seen while servers, lines and gateways were struck. And the queue of a struck cluster may
lack messages (`tasks/stranded.py`). So what the read model knows to be overdue, and some of what it has as queued or
running for long, is looked at in QUEUE and in the log, and done; of two gateways one gets in.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta

from bitinglip.errors import BitingLipError
from bitinglip.events.consumers import QueueState
from bitinglip.events.ending import end
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.scheduler import Scheduler
from bitinglip.tasks.stranded import StrandedWork

log = logging.getLogger(__name__)

LOOK_S = 10.0
LATE = timedelta(seconds=10)
"""What has been due for so long is overdue: a timer that was only a little late has fired by then."""
SILENT = timedelta(seconds=20)
"""A worker that has said nothing for so much longer may be gone."""
MOST = 100
"""Tasks that are looked at in one look: overdue ones, and of those that are queued, and that run."""
LOOKS_A_SCHEDULE = 6
"""Schedules, which are few and come by the minute, are looked at in one look of so many."""


class OverdueWork:
    """Looks for overdue tasks as long as it is open."""

    def __init__(
        self,
        event_log: EventLog,
        readmodel: ReadModel,
        reactor: Reactor,
        scheduler: Scheduler,
        stranded: StrandedWork,
    ) -> None:
        self._log = event_log
        self._readmodel = readmodel
        self._reactor = reactor
        self._scheduler = scheduler
        self._stranded = stranded
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
            BitingLipError: the read model, or the server, cannot be asked.
        """
        before = self._log.clock() - late
        overdue = await self._readmodel.queries.overdue(before, MOST)
        with_work = await self._readmodel.queries.with_work(before, before - SILENT, MOST)
        queues = {state.route: state for state in await self._log.queue_states()}
        due = [task_id for task_id in map(TaskId, overdue) if await self._is_mended(self._do, task_id, queues)]
        mend = self._stranded.mend_lost
        return due + [each for each in map(TaskId, with_work) if await self._is_mended(mend, each, queues)]

    async def _do(self, task_id: TaskId, queues: Mapping[Route, QueueState]) -> bool:
        """Do what is due; a retry may be due whose message was handed back, and comes to nobody."""
        return await self._reactor.do_what_is_due(task_id) or await self._stranded.mend_lost(task_id, queues)

    async def _is_mended(
        self,
        mend: Callable[[TaskId, Mapping[Route, QueueState]], Awaitable[bool]],
        task_id: TaskId,
        queues: Mapping[Route, QueueState],
    ) -> bool:
        try:
            mended = await mend(task_id, queues)
        except BitingLipError as error:
            log.debug("task %s: it is looked at again: %s", task_id, error)
            return False
        if mended:
            log.warning("task %s: it had come to a stop, and goes on", task_id)
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
