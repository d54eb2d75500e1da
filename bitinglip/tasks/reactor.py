"""What nobody asked for just now, and is due all the same: start timers, expiries, tasks that others have ended for.

Every gateway has a reactor, and they share the work. What it does can be done twice: each delivery is acked only when
its consequence is in the log, and may come again.
"""

from __future__ import annotations

from bitinglip.events import subjects
from bitinglip.events.direct import get_last
from bitinglip.events.log import EventLog
from bitinglip.events.reactions import NotYetError, Reactions
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import WakeTask
from bitinglip.tasks.dependents import Dependents
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import awaited_timer, fold, is_expired
from bitinglip.tasks.timers import ensure_timer

SUBMITTED_WITHIN_S = 120.0
"""A task whose expiry was set comes within this time, or it was given up."""
FILTERS = (subjects.SCHEDULED_SUBMISSIONS, subjects.DUES)


class Reactor:
    """Reacts to tasks that start later, to those whose time to start has passed, and to ends that others wait for."""

    def __init__(self, log: EventLog, inbox: Inbox, followed_most: int = 10_000) -> None:
        self._log = log
        self._dependents = Dependents(log, inbox, followed_most)
        self._inbox = inbox
        self._reactions = Reactions(log.connection, TASKS, "reactor", FILTERS, self._react)

    async def start(self) -> None:
        """Begin.

        Raises:
            NoServer: the log cannot be reached.
        """
        await self._reactions.start()
        await self._dependents.start()

    async def close(self) -> None:
        """End; what is in hand goes to another reactor."""
        await self._reactions.close()
        await self._dependents.close()

    async def do_what_is_due(self, task_id: TaskId) -> bool:
        """Expire, queue or release a task if its time has come, whether or not anything told so; true if it was.

        An attempt that is to follow another one at once waits by the message of that one, which was handed back.

        Raises:
            Conflict, NoServer: it is to be tried again.
        """
        task, now = fold(await self._log.read_task(task_id)), self._log.clock()
        if task is None or task.ended:
            return False
        if is_expired(task, now):
            await self._inbox.expire(task_id)
            return True
        if task.waits_for_others:
            return await self._dependents.look(task_id)
        if task.state != "scheduled":
            return False
        if await get_last(self._log.connection, QUEUE, subjects.work_of(task_id)) is not None:
            return False
        return (await self._inbox.settle(task, WakeTask(now=now))).sequence != task.sequence

    async def _react(self, subject: str, _: bytes) -> None:
        sort, task_id, what = subject.split(".")[1:4]
        if what == "after":
            await self._dependents.look(TaskId(task_id))
        elif sort == "due":
            await self._expire(TaskId(task_id), subject)
        else:
            await self._submitted(TaskId(task_id))

    async def _expire(self, task_id: TaskId, subject: str) -> None:
        if await self._inbox.expire(task_id):
            return
        due = await get_last(self._log.connection, TASKS, subject)
        if due is not None and self._log.clock().timestamp() - due.time_ns / 1e9 < SUBMITTED_WITHIN_S:
            raise NotYetError("the task whose expiry is due is not in the log yet")

    async def _submitted(self, task_id: TaskId) -> None:
        task = fold(await self._log.read_task(task_id))
        if task is None:
            raise NotYetError("who answered for the log lacks the submission that was just delivered")
        if (wait := awaited_timer(task)) is not None:
            await ensure_timer(self._log, task, wait)
        elif task.waits_for_others:
            await self._dependents.look(task_id)
