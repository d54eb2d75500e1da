"""What nobody asked for just now, and is due all the same: start timers, expiries.

Every gateway has a reactor, and they share the work. What it does can be done twice: each delivery is acked only when
its consequence is in the log, and may come again.
"""

from __future__ import annotations

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.reactions import Reactions
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold
from bitinglip.tasks.timers import ensure_timer, start_timer

FILTERS = (subjects.SCHEDULED_SUBMISSIONS, subjects.DUES)


class Reactor:
    """Reacts to tasks that start later, and to those whose time to start has passed."""

    def __init__(self, log: EventLog, inbox: Inbox) -> None:
        self._log = log
        self._inbox = inbox
        self._reactions = Reactions(log.connection, TASKS, "reactor", FILTERS, self._react)

    async def start(self) -> None:
        """Begin.

        Raises:
            NoServer: the log cannot be reached.
        """
        await self._reactions.start()

    async def close(self) -> None:
        """End; what is in hand goes to another reactor."""
        await self._reactions.close()

    async def _react(self, subject: str, _: bytes) -> None:
        parts = subject.split(".")
        if parts[1] == "due":
            await self._inbox.expire(TaskId(parts[2]))
        else:
            await self._set_start(TaskId(parts[2]))

    async def _set_start(self, task_id: TaskId) -> None:
        task = fold(await self._log.read_task(task_id))
        wait = None if task is None else start_timer(task)
        if task is not None and wait is not None:
            await ensure_timer(self._log, task, wait)
