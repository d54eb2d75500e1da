"""Stranded work is mended in the log: the task is queued once more, and the message that nobody has is taken out.

And lost work: of three servers, one of which was struck, QUEUE was seen to lack what it should have had from TASKS, and
what a killed worker had; and what was handed out to workers that were killed came to others only after a minute, though
they asked for it (nats-server 2.15.1). Whoever suspects it names the task. What was handed out is handed out again
first: another message would be the last one of its queue.

Every gateway looks. What it appends expects that the task has not changed since, so a task that somebody holds after
all is left alone, and of two gateways one gets in.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Mapping
from datetime import timedelta

from bitinglip.errors import BitingLipError
from bitinglip.events import subjects
from bitinglip.events.consumers import QueueState
from bitinglip.events.direct import get_last
from bitinglip.events.ending import end
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.stranded import Stray, find_strays, first_waiting, hand_out_again, remove_stray
from bitinglip.events.streams import QUEUE, TASKS, WORKERS, Route
from bitinglip.events.task import TaskAssigned, TaskQueued
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import FailAttempt, RequeueTask, WakeTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import LOST_LEASE, AwaitTimer, Task, fold
from bitinglip.tasks.timers import ensure_timer

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks; what is seen in both is stranded."""
SILENT_S = 60.0
"""A worker that has said nothing for so long runs nothing any more."""
STUCK = timedelta(seconds=15)
"""What was handed out, and of which nothing has come for so long (or for two leases, if that is longer), is handed out
again. If others come before it all the same it gets another message, after twice as long, then after four times …"""
BEGUN_WITHIN = timedelta(seconds=10)
"""A worker that has had an attempt for longer counts it among those that run."""

REMEMBERED = 1_000
"""Messages of which is known that they were handed out again: once is enough."""
QUEUES_A_LOOK, ENDED_A_LOOK = 20, 100
"""Queues that stand still of which the first messages are looked at, chosen by chance; and how many of each."""


class StrandedWork:
    """Looks for stranded work, and mends it."""

    def __init__(self, event_log: EventLog, inbox: Inbox, look_s: float = LOOK_S, silent_s: float = SILENT_S) -> None:
        self._log = event_log
        self._inbox = inbox
        self._look_s = look_s
        self._silent_s = silent_s
        self._seen: set[Stray] = set()
        self._heard: dict[str, tuple[int, float]] = {}
        """For each worker that was asked about: its last event, and since when (by our clock) it is the last."""
        self._handed_again: dict[int, int | None] = {}
        """Messages (by sequence in QUEUE) that are to be handed out again before any other, and what was the last one
        that had been handed out when that was so; none until the next look."""
        self._handed_out: dict[Route, int] = {}
        """What each queue had handed out at the last look."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="stranded work")

    async def close(self) -> None:
        """Look no more."""
        await end(lambda: [self._task])

    async def look(self) -> list[TaskId]:
        """Look once; returns the tasks whose messages were mended, or taken out.

        Raises:
            NoServer: the server does not answer.
        """
        found = await find_strays(self._log.connection)
        again = [stray for stray in found if stray in self._seen]
        self._seen = set(found)
        return [stray.task_id for stray in again if await self._mend(stray)] + await self._clear_ended()

    async def mend_lost(self, task_id: TaskId, queues: Mapping[Route, QueueState]) -> bool:
        """See to it that somebody is given a task that waits or runs, if nobody is; true if it got another message.

        One whose message no queue has gets another one. One whose message was handed out (as `queues` tell), and of
        which nothing has come for long, is handed out again, before those that wait; if that is no help it gets another
        message, which is the last one of its queue. A task that runs is left alone until its worker is gone. The queue
        is asked before the log: a message leaves it only when the log has what became of the task.

        Raises:
            Conflict, NoServer: it is to be tried again.
        """
        message = await get_last(self._log.connection, QUEUE, subjects.work_of(task_id))
        if message is None:
            return await self._replace(await self._log.read_task(task_id))
        queue = queues.get(_route(message.subject))
        if queue is None or message.sequence > queue.handed_out:
            return False
        stuck = max(STUCK, timedelta(seconds=2 * queue.lease_s))
        # A long history is not read to find that it goes on: a task that runs may have thousands of ticks.
        quiet_for = await self._quiet_for(task_id)
        if quiet_for <= stuck:
            return False
        if message.sequence not in self._handed_again:
            await self._hand_out_again(task_id, queue, message.sequence)
            return False
        if not self._is_passed_over(queue, message.sequence):
            return False  # everybody is busy, or nobody is there
        history = await self._log.read_task(task_id)
        return quiet_for > 2 * stuck * 2 ** _times_stranded(history) and await self._replace(history)

    async def _hand_out_again(self, task_id: TaskId, queue: QueueState, sequence: int) -> None:
        history = await self._log.read_task(task_id)
        task = fold(history)
        if task is None or task.ended or (task.state == "running" and not await self._is_gone(task, history)):
            return
        while len(self._handed_again) >= REMEMBERED:
            del self._handed_again[next(iter(self._handed_again))]
        await hand_out_again(self._log.connection, queue, sequence)
        self._handed_again[sequence] = None
        log.info("task %s: nothing has come of it since it was handed out; it is handed out again", task_id)

    def _is_passed_over(self, queue: QueueState, sequence: int) -> bool:
        """Whether others came, or might come, before a message that should be the next one to be handed out."""
        since = self._handed_again[sequence]
        if since is None:
            self._handed_again[sequence] = queue.handed_out
            return False
        return not queue.paused and (queue.asked or queue.handed_out > since)

    async def _replace(self, history: list[Recorded]) -> bool:
        """Give a task another message in the place of the one that is with nobody, or nowhere."""
        task = fold(history)
        if task is None or task.ended:
            return False
        if task.state == "scheduled":
            return (await self._inbox.settle(task, WakeTask(now=self._log.clock()))).sequence != task.sequence
        return await self._hand_on(task, history)

    async def _quiet_for(self, task_id: TaskId) -> timedelta:
        """Return how long ago the last event of a task was; for none it is for ever."""
        last = await self._log.read_last(TASKS, subjects.task_events(task_id))
        return timedelta.max if last is None else self._log.clock() - last.recorded_at

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except BitingLipError as error:
                log.debug("no look for stranded work: %s", error)

    async def _clear_ended(self) -> list[TaskId]:
        """Take ended tasks' messages out of queues that stand still, as far as they are the first ones."""
        states = await self._log.queue_states()
        before, self._handed_out = self._handed_out, {state.route: state.handed_out for state in states}
        still = [state for state in states if state.waiting and before.get(state.route) == state.handed_out]
        cleared: list[TaskId] = []
        for state in random.sample(still, min(len(still), QUEUES_A_LOOK)):
            for _ in range(ENDED_A_LOOK):
                first = await first_waiting(self._log.connection, state)
                if first is None or not await self._has_ended(first.task_id):
                    break
                await remove_stray(self._log.connection, first)
                cleared.append(first.task_id)
        return cleared

    async def _has_ended(self, task_id: TaskId) -> bool:
        task = fold(await self._log.read_task(task_id))
        return task is not None and task.ended

    async def _mend(self, stray: Stray) -> bool:
        """Make sure that the task needs the message no more, and take it out; false if somebody may have it."""
        history = await self._log.read_task(stray.task_id)
        task = fold(history)
        origin = next((recorded.sequence for recorded in history if recorded.id == stray.event_id), 0)
        if task is None or (not task.ended and not origin):
            return False  # who answered for the log is behind its queue; or a worker will find that there is no task
        if not task.ended and origin == task.ready_sequence:
            if not await self._hand_on(task, history):
                return False
            log.warning("task %s: its work in %s is with nobody; it goes on", task.id, stray.route.consumer)
        await remove_stray(self._log.connection, stray)
        return True

    async def _hand_on(self, task: Task, history: list[Recorded]) -> bool:
        if task.state == "running":
            if not await self._is_gone(task, history):
                return False
            task = await self._take_from(task)
            if task.state == "running":
                return False
        if task.state == "queued":
            await self._inbox.settle(task, RequeueTask(ready_sequence=task.ready_sequence))
        elif task.state == "scheduled" and task.retry_at is not None:
            await ensure_timer(self._log, task, AwaitTimer(task.attempt + 1, task.retry_at))
        return True

    async def _is_gone(self, task: Task, history: list[Recorded]) -> bool:
        """Whether the worker that runs a task has ended since, says it runs nothing, or has been silent for long."""
        assert task.worker_id is not None
        assigned = next(recorded for recorded in reversed(history) if isinstance(recorded.event, TaskAssigned))
        said = await self._log.read_latest(WORKERS, subjects.worker_subject(task.worker_id, "*"))
        ends = [each for each in said if isinstance(each.event, WorkerStarted | WorkerStopped)]
        beats = [each for each in said if isinstance(each.event, WorkerHeartbeat) and not each.event.running]
        begun = assigned.recorded_at + BEGUN_WITHIN
        if any(each.recorded_at > assigned.recorded_at for each in ends) or any(b.recorded_at > begun for b in beats):
            return True
        last = max((each.sequence for each in said), default=0)
        heard = self._heard.get(task.worker_id)
        if heard is None or heard[0] != last:
            heard = self._heard[task.worker_id] = (last, time.monotonic())
        return time.monotonic() - heard[1] >= self._silent_s

    async def _take_from(self, task: Task) -> Task:
        """End the attempt of a worker that is gone, as the next one would whom its message came to."""
        assert task.worker_id is not None
        now = self._log.clock()
        lost = FailAttempt(
            attempt=task.attempt, worker_id=task.worker_id, failure=LOST_LEASE, run_ms=0.0, now=now, jitter=0.0
        )
        return await self._inbox.settle(task, lost)


def _times_stranded(history: list[Recorded]) -> int:
    """Return how often a task was given another message since its last attempt began."""
    since_assigned = itertools.takewhile(lambda each: not isinstance(each.event, TaskAssigned), reversed(history))
    return sum(isinstance(each.event, TaskQueued) and each.event.reason == "stranded" for each in since_assigned)


def _route(subject: str) -> Route:
    """Return the queue that a work message's subject names."""
    lane, queue = subject.split(".")[2:4]
    return Route(lane, queue)
