"""Tasks that wait for others: released with those tasks' results, or dropped.

What lasts is a timer in the log for each of them, which says when to look again; a gateway that dies leaves it behind.
In memory a gateway follows the tasks that are waited for, so that their end is answered at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import orjson

from bitinglip.errors import ArtifactExpired, ArtifactNotFound, BitingLipError, InvalidInput, TaskIsForgotten
from bitinglip.events import artifacts, subjects
from bitinglip.events.connection import Subscription
from bitinglip.events.ending import end
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId
from bitinglip.tasks import media
from bitinglip.tasks.commands import DropTask, ReleaseTask, checked
from bitinglip.tasks.dependencies import Outcome, look_again_at, outcomes_of, results_of, verdict
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.references import filled, referred
from bitinglip.tasks.state import TERMINAL, Task, fold

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Looks at a time that nobody waits for."""
PARAMS_MOST_BYTES = 16 * 2**20
"""Largest parameters that results of other tasks may lead to."""

_ENDS = frozenset(state.encode() for state in TERMINAL)


class Dependents:
    """The waiting tasks that one gateway knows of."""

    def __init__(self, event_log: EventLog, inbox: Inbox, followed_most: int) -> None:
        self._log = event_log
        self._inbox = inbox
        self._most = followed_most
        self._waiting: dict[TaskId, tuple[TaskId, ...]] = {}
        self._followed: dict[TaskId, tuple[Subscription, set[TaskId]]] = {}
        self._following = asyncio.Lock()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._running: set[asyncio.Task[None]] = set()
        self._forget_listener = event_log.connection.on_reconnect(self._look_at_all)

    async def start(self) -> None:
        """Look at what waits already.

        Raises:
            NoServer: the log cannot be asked now.
        """
        timers = await self._log.subjects_of(TASKS, subjects.DEPENDENTS)
        for timer in timers[: self._most]:
            self._begin(self._look_now(TaskId(timer.split(".")[2])))

    async def close(self) -> None:
        """End; other gateways, and later ones, look after what waits."""
        self._forget_listener()
        await end(lambda: list(self._running))
        for subscription, _ in self._followed.values():
            await self._log.connection.unsubscribe(subscription)

    async def look(self, task_id: TaskId) -> bool:
        """Release a task, or drop it, if the tasks before it have ended; else see to it that it is looked at again.

        Returns whether it waits no more.

        Raises:
            NoServer: the log cannot be asked now.
        """
        waiting = await self._settle(task_id)
        if waiting is not None:
            at = look_again_at(waiting.ready_at, self._log.clock())
            await self._log.append(self._log.look_append(task_id, at))
        return waiting is None

    async def _settle(self, task_id: TaskId) -> Task | None:
        """Return the task if it has to wait on."""
        task = fold(await self._log.read_task(task_id))
        if task is not None and task.waits_for_others:
            await self._follow(task)
            outcomes = await outcomes_of(self._log, task.submitted.depends_on or ())
            command = verdict(task.submitted, outcomes)
            if command is None:
                return task
            if isinstance(command, ReleaseTask):
                command = await self._release(task, outcomes)
            await self._inbox.settle(task, command)
        await self._forget(task_id)
        return None

    async def _release(self, task: Task, outcomes: dict[TaskId, Outcome]) -> ReleaseTask | DropTask:
        try:
            return await self._filled(task, outcomes)
        except (InvalidInput, ArtifactNotFound, ArtifactExpired, TaskIsForgotten) as error:
            told = f"its parameters cannot be made: {error.code}" if task.submitted.private else str(error)
            return DropTask(reason=told[:1000])

    async def _filled(self, task: Task, outcomes: dict[TaskId, Outcome]) -> ReleaseTask:
        """Return the release with everything in the parameters that was not known when they were submitted."""
        given, kind = task.submitted.params, task.submitted.kind
        if task.submitted.params_ref is not None:
            given = orjson.loads((await artifacts.get(self._log.connection, task.submitted.params_ref.sha256))[0])
        params = given or {}
        if needed := referred(params):
            results = await results_of(self._log, {each: outcomes[each] for each in needed})
            params = filled(params, results)
            checked(kind, params)
        private = task.submitted.private
        params = await media.resolve_params(self._log, kind, params, keep_data=private)
        if params == given:
            return ReleaseTask()
        if len(orjson.dumps(params)) > PARAMS_MOST_BYTES:
            raise InvalidInput(field="params", problem="are larger than 16 MiB with the results in their places")
        inline, reference = await self._inbox.stored(task.id, params, private=private)
        return ReleaseTask(params=inline, params_ref=reference)

    async def _follow(self, task: Task) -> None:
        async with self._following:
            if task.id in self._waiting or len(self._waiting) >= self._most:
                return
            depends_on = task.submitted.depends_on or ()
            for each in depends_on:
                if each not in self._followed:
                    subject = subjects.live_task_events(each)
                    subscription = await self._log.connection.subscribe_direct(subject, self._heard)
                    self._followed[each] = (subscription, set())
                self._followed[each][1].add(task.id)
            self._waiting[task.id] = depends_on

    async def _forget(self, task_id: TaskId) -> None:
        async with self._following:
            for each in self._waiting.pop(task_id, ()):
                subscription, dependents = self._followed[each]
                dependents.discard(task_id)
                if not dependents:
                    del self._followed[each]
                    await self._log.connection.unsubscribe(subscription)

    def _heard(self, subject: bytes, _reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
        parts = subject.split(b".")
        followed = self._followed.get(TaskId(parts[3].decode()))
        if parts[4] in _ENDS and followed is not None:
            for task_id in followed[1]:
                self._begin(self._look_now(task_id))

    def _look_at_all(self) -> None:
        """What happened while the connection was away was not heard."""
        for task_id in self._waiting:
            self._begin(self._look_now(task_id))

    async def _look_now(self, task_id: TaskId) -> None:
        """Look at a task whose timer is set: if that fails, the timer makes up for it."""
        try:
            async with self._slots:
                await self._settle(task_id)
        except BitingLipError as error:
            log.debug("task %s is looked at later: %s", task_id, error)

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
