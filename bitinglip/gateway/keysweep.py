"""Keys that no task has: left by a request that ended between its key and its event. A sweep now and then drops them.

Every gateway sweeps; twice does no harm. A key is kept if the log knows of its task (or batch, or schedule), or the
read model does, which remembers tasks that have left the log.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from bitinglip.errors import BitingLipError
from bitinglip.events import artifacts, subjects
from bitinglip.events.ending import end
from bitinglip.events.keys import destroy_key, made_at, owners
from bitinglip.events.log import EventLog
from bitinglip.events.streams import SCHEDULES, TASKS
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel

log = logging.getLogger(__name__)

EVERY_S = 3600.0
YOUNG = timedelta(hours=1)
"""A key of this age may belong to a request that is still being answered."""

OVER = frozenset({"task.forgotten", "schedule.deleted"})
"""After one of these as the last event, a key that is there was left by a destruction that ended half-way."""


class KeySweep:
    """Sweeps as long as it is open."""

    def __init__(self, event_log: EventLog, readmodel: ReadModel) -> None:
        self._log = event_log
        self._readmodel = readmodel
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first sweep is after the read model has caught up."""
        self._task = asyncio.create_task(self._run(), name="key-sweep")

    async def close(self) -> None:
        """End."""
        await end(lambda: [self._task])

    async def sweep(self, young: timedelta = YOUNG) -> list[str]:
        """Destroy the keys that nobody has, and drop what is sealed with them; returns whose they were.

        Raises:
            NoServer: the server does not answer.
        """
        orphans = [owner for owner in await owners(self._log.connection) if await self._is_orphan(owner, young)]
        for owner in orphans:
            await destroy_key(self._log.connection, owner)
        for digest in await artifacts.sealed_for(self._log.connection, orphans) if orphans else ():
            await artifacts.drop(self._log.connection, digest)
        return orphans

    async def _run(self) -> None:
        await self._readmodel.wait_ready()
        while True:
            try:
                if orphans := await self.sweep():
                    log.info("%d keys that no task had were destroyed", len(orphans))
            except BitingLipError as error:
                log.debug("the keys are swept later: %s", error)
            await asyncio.sleep(EVERY_S)

    async def _is_orphan(self, owner: str, young: timedelta) -> bool:
        made = await made_at(self._log.connection, owner)
        if made is None or self._log.clock() - made < young:
            return False
        known = (
            (TASKS, subjects.task_events(TaskId(owner))),
            (TASKS, subjects.batch_events(owner)),
            (SCHEDULES, subjects.schedule_events(owner)),
        )
        for stream, subject in known:
            last = await self._log.read_last(stream, subject)
            if last is not None:
                return last.type in OVER
        batches, _ = await self._readmodel.queries.batches(batch_id=owner, limit=1)
        return not batches and await self._readmodel.span_of_task(TaskId(owner)) is None
