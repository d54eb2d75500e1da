"""One attempt's life, seen from the worker: its task as the log tells it, and how its events get there.

An attempt's events form a chain: each one expects to follow the last event of the task that the attempt knows of. When
somebody else's event got in between, the history is read on and the command is decided again on what is now true.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from bitinglip.errors import BitingLipError, Conflict, IllegalTransition, NoServer
from bitinglip.events.appending import Append
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery
from bitinglip.events.task import TaskEvent, TaskProgressed, TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import TaskCommand
from bitinglip.tasks.state import AwaitTimer, Stale, Task, decide, evolve, fold
from bitinglip.tasks.timers import ensure_timer

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause between tries while the server is away."""
SURELY_NONE = 3
"""Delivery from which on a work message whose task is not in the log is for none: a server that leads no more, and does
not know it yet, lacks what is new as well."""


@dataclass(slots=True)
class Attempt:
    """A work message in hand, and the task that it is about."""

    delivery: Delivery
    task: Task
    cancelled: bool = False
    """Somebody asked for it to stop."""
    timed_out: bool = False
    settled: bool = False
    """Nothing more is to be done: its outcome is in the log, or it is somebody else's by now."""
    started: float = field(default_factory=time.monotonic)
    load_ms: float = 0.0
    key: bytes | None = None
    """The key of a private task, once its parameters were read."""
    timer: asyncio.TimerHandle | None = None

    @property
    def id(self) -> TaskId:
        """The task's id."""
        return self.task.id

    @property
    def run_ms(self) -> float:
        """Milliseconds since the attempt began."""
        return (time.monotonic() - self.started) * 1000


@dataclass(slots=True)
class _Step:
    """A command on its way into the log: what is still to be appended for it."""

    attempt: Attempt
    command: TaskCommand
    events: list[TaskEvent]
    done: bool = False
    result: Stale | AwaitTimer | None = None


class Scribe:
    """Writes attempts' commands to the log, many at a time."""

    def __init__(self, event_log: EventLog, tick_ttl_s: int, stopping: Callable[[], bool]) -> None:
        self._log = event_log
        self._tick_ttl_s = tick_ttl_s
        self._stopping = stopping

    async def open(self, delivery: Delivery) -> Attempt | None:
        """Return the attempt that a work message stands for; none (and the message is acked) if there is no such task.

        A task that comes for the first time needs no read: the message is its whole history.

        Raises:
            NoServer: the log cannot be asked, or who answers for it is behind its queue.
        """
        recorded, event = delivery.event, delivery.event.event
        if _tells_all(delivery):
            task = evolve(None, event, recorded.sequence, recorded.time)
        else:
            task = fold(await self._log.read_task(event.task_id)) if isinstance(event, TaskEvent) else None
        known = 0 if task is None else task.sequence
        if known < recorded.sequence and (task is not None or delivery.delivered < SURELY_NONE):
            raise NoServer(problem=f"who answered for the log is behind its queue: {recorded.subject}")
        if task is None:
            log.warning("a work message for no task: %s", recorded.subject)
            await delivery.ack()
            return None
        return Attempt(delivery, task)

    async def open_all(self, deliveries: Seq[Delivery]) -> list[Attempt]:
        """Return the attempts that work messages stand for, in their order; those for no task are left out, and acked.

        One of which the log cannot tell now holds up no others: it is left out as well, to its lease.

        Raises:
            NoServer: the log can tell of none of them.
        """
        asked = [delivery for delivery in deliveries if not _tells_all(delivery)]
        told = await asyncio.gather(*map(self.open, asked), return_exceptions=True)
        answers = dict(zip([delivery.reply for delivery in asked], told, strict=True))
        refused = [answer for answer in told if isinstance(answer, BaseException)]
        for error in refused:
            if not isinstance(error, NoServer) or len(refused) == len(deliveries):
                raise error
            log.info("a work message is left to its lease: %s", error)
        opened = [answers[each.reply] if each.reply in answers else await self.open(each) for each in deliveries]
        return [attempt for attempt in opened if isinstance(attempt, Attempt)]

    async def write(
        self, commands: Seq[tuple[Attempt, TaskCommand]], *, patient: bool = True
    ) -> list[Stale | AwaitTimer | None]:
        """Decide and append the commands, all attempts at once; returns for each how it ended (none: it is in the log).

        While the server is away a patient write waits for it, and gives up only when the worker is being stopped.

        Raises:
            NoServer: the server is away (not patient, or being stopped).
        """
        steps = [self._step(attempt, command) for attempt, command in commands]
        while pending := [step for step in steps if not step.done]:
            appends = [self._prepare(step.attempt, step.events[0]) for step in pending]
            outcomes = await self._log.append_all(appends)
            away: NoServer | None = None
            for step, outcome in zip(pending, outcomes, strict=True):
                away = await self._advance(step, outcome) or away
            if away is not None:
                if not patient or self._stopping():
                    raise away
                await asyncio.sleep(RETRY_S)
        return [step.result for step in steps]

    async def settle(self, attempt: Attempt, outcome: Stale | AwaitTimer | None) -> None:
        """Let go of the work message as its task's state asks: ack it, hand it back, or leave it to its new owner."""
        attempt.settled = True
        if attempt.timer is not None:
            attempt.timer.cancel()
        task, delivery = attempt.task, attempt.delivery
        if isinstance(outcome, AwaitTimer):
            await ensure_timer(self._log, task, outcome)
        elif task.state == "scheduled" and task.retry_at is not None:
            if task.retry_at <= self._log.clock():
                await delivery.nak()
                return
            await ensure_timer(self._log, task, AwaitTimer(task.attempt + 1, task.retry_at))
        elif isinstance(outcome, Stale) and not task.ended and delivery.event.sequence == task.ready_sequence:
            log.warning("task %s: this attempt is somebody else's by now; nothing of it is kept", task.id)
            return
        await delivery.ack()

    async def refresh(self, attempt: Attempt) -> None:
        """Read on what others have written about the task."""
        for recorded in await self._log.read_task(attempt.id, after=attempt.task.sequence):
            after = evolve(attempt.task, recorded.event, recorded.sequence, recorded.time)
            assert after is not None
            attempt.task = after
        attempt.cancelled = attempt.cancelled or attempt.task.cancel is not None

    def _step(self, attempt: Attempt, command: TaskCommand) -> _Step:
        step = _Step(attempt, command, [])
        self._decide(step)
        return step

    def _decide(self, step: _Step) -> None:
        decision = decide(step.attempt.task, step.command)
        if isinstance(decision, Stale | AwaitTimer):
            step.result, step.done = decision, True
        else:
            step.events = list(decision)
            step.done = not step.events

    def _prepare(self, attempt: Attempt, event: TaskEvent) -> Append:
        ttl_s = self._tick_ttl_s if isinstance(event, TaskProgressed) else None
        return self._log.task_append(event, attempt.task.sequence, causation=attempt.delivery.event.id, ttl_s=ttl_s)

    async def _advance(self, step: _Step, outcome: int | BitingLipError) -> NoServer | None:
        attempt = step.attempt
        if isinstance(outcome, NoServer):
            return outcome
        if isinstance(outcome, Conflict):
            return await self._decide_again(step)
        if isinstance(outcome, BitingLipError):
            raise outcome
        after = evolve(attempt.task, step.events.pop(0), outcome, self._log.clock())
        assert after is not None
        attempt.task = after
        step.done = not step.events
        return None

    async def _decide_again(self, step: _Step) -> NoServer | None:
        known = step.attempt.task.sequence
        try:
            await self.refresh(step.attempt)
            if step.attempt.task.sequence == known:
                task = fold(await self._log.read_task(step.attempt.id))
                if task is None:
                    step.result, step.done = Stale(), True  # it has ended long ago, and left the server
                    return None
                step.attempt.task = task  # what we knew to be its last event was a tick, and has left the log
            self._decide(step)
        except NoServer as error:
            return error
        except IllegalTransition as error:
            log.error("the history of task %s cannot be: %s", step.attempt.id, error)  # noqa: TRY400
            step.result, step.done = Stale(), True
        return None


def _tells_all(delivery: Delivery) -> bool:
    """Tell whether a work message is its task's whole history."""
    return delivery.delivered == 1 and isinstance(delivery.event.event, TaskSubmitted)
