"""Command -> decide -> append; a conflict means: read again, decide again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any

import orjson

from bitinglip.errors import (
    BitingLipError,
    Conflict,
    IdempotencyMismatch,
    IllegalTransition,
    InvalidInput,
    NoServer,
    TaskIsForgotten,
    TaskNotFound,
)
from bitinglip.events import artifacts, subjects
from bitinglip.events.absence import confirm_absent
from bitinglip.events.appending import Append
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.task import ArtifactRef, Requires, RetryPolicy, TaskEvent, TaskQueued, TaskSubmitted
from bitinglip.ids import Sequence, TaskId, task_id_for_key
from bitinglip.tasks import privacy
from bitinglip.tasks.commands import (
    CancelTask,
    DropTask,
    ExpireTask,
    FailAttempt,
    ForgetTask,
    ReleaseTask,
    RequeueTask,
    SubmitTask,
    WaitingCommand,
    WakeTask,
)
from bitinglip.tasks.dependencies import require
from bitinglip.tasks.outgrown import ensure_queue
from bitinglip.tasks.references import referred
from bitinglip.tasks.routing import route_now, route_of
from bitinglip.tasks.state import AwaitTimer, Stale, State, Task, again, decide, evolve, fold

RETRIED: frozenset[State] = frozenset({"failed", "dead_lettered", "expired", "cancelled"})
"""States from which a task can be asked for again."""
_POLICY = RetryPolicy()
TRIES = 20
"""How often a command is decided again before its conflict is the caller's to hear of."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task is in the log."""

    task_id: TaskId
    sequence: Sequence
    created: bool
    """Whether this request made it; not so for the repeat of an idempotency key."""
    run_at: datetime | None = None
    """When it may start; none if no time was given."""
    waits: bool = False
    """Whether it has yet to be made ready: its time has not come, or it was asked to wait for other tasks."""


class Inbox:
    """Where commands enter."""

    def __init__(
        self,
        log: EventLog,
        inline_max_bytes: int,
        policies: Mapping[str, RetryPolicy] = MappingProxyType({}),
        opened: Callable[[TaskSubmitted], Awaitable[None]] | None = None,
        resolve: Callable[[str], str] = lambda model: model,
        *,
        private: bool = False,
    ) -> None:
        """`policies`: retry policies of kinds that have one of their own; `opened` sees to it that a queue is there.

        `resolve` returns the model that a name stands for now, which may be the name itself. `private`: whether a task
        is that says nothing of it.
        """
        self._private = private
        self._opened = opened or _as_it_is
        self._resolve = resolve
        self._log = log
        self._inline_max_bytes = inline_max_bytes
        self._policies = policies

    async def submit(
        self,
        command: SubmitTask,
        *,
        key_id: str | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
        task_id: TaskId | None = None,
    ) -> Accepted:
        """Put a task into the log; when this returns it will not be lost.

        `task_id` is for a task that has one before it is asked for: a second submission of it is a repeat.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            NoServer, StreamFull: the log does not take it now.
        """
        event = await self.prepare(command, key_id=key_id, idempotency_key=idempotency_key, task_id=task_id)
        await self._opened(event)
        return await self.append(event, request_id)

    def is_private(self, said: bool | None) -> bool:
        """Tell whether what is asked is to be kept out of the log, by what the request says of it."""
        return self._private if said is None else said

    async def forget(self, task_id: TaskId, command: ForgetTask) -> Task:
        """Destroy the key of a private task that has ended, drop its artifacts, and say so; again, it changes nothing.

        Raises:
            TaskNotFound: there is no such task.
            IllegalTransition: it has not ended.
            TaskNotPrivate: it has no key.
            NoServer: not all of it was done; it can be done again.
        """
        history = await self._log.read_task(task_id)
        task = fold(history)
        if task is None:
            raise await self._not_found(task_id)
        decide(task, command)  # it says so if the task cannot be forgotten
        await privacy.destroy(self._log.connection, history)
        return await self._say_forgotten(task, command)

    async def _say_forgotten(self, task: Task, command: ForgetTask) -> Task:
        """Append what a command leads to; the task's other events may have left the server, which then expects none."""
        conflict: Conflict | None = None
        for _ in range(TRIES):
            events = decide(task, command)
            assert isinstance(events, tuple)
            if not events:
                return task
            last = await self._log.read_last(TASKS, subjects.task_events(task.id))
            expected = 0 if last is None else last.sequence
            try:
                sequence = await self._log.append(self._log.task_append(events[0], expected))
            except Conflict as error:
                conflict = error
                task = fold(await self._log.read_task(task.id)) or task
                continue
            return task._replace(sequence=sequence, forgotten=True)
        assert conflict is not None
        raise conflict

    async def retry(self, task_id: TaskId, *, force: bool = False, request_id: str | None = None) -> Accepted:
        """Ask for a task that ended without a result once more: a new task with the same request.

        Retrying it again is a repeat, which is answered with the first one's task, unless it is forced.

        Raises:
            TaskNotFound: there is no such task.
            IllegalTransition: it has not ended, or succeeded.
            ArtifactNotFound, ArtifactExpired, TaskIsForgotten: its parameters are there no more.
        """
        task = fold(await self._log.read_task(task_id))
        if task is None:
            raise await self._not_found(task_id)
        if task.state not in RETRIED:
            raise IllegalTransition(task_id=task_id, state=task.state, action="be retried")
        if task.forgotten:
            raise TaskIsForgotten(task_id=task_id)
        if task.submitted.params_ref is not None:
            await artifacts.find(self._log.connection, task.submitted.params_ref.sha256)
        made = TaskId(self._log.ids()) if force else task_id_for_key("retry\0", task_id)
        event = again(task.submitted, made, self._log.clock())
        if event.private:
            event = await privacy.resealed(self._log.connection, event, task.submitted)
        await self._opened(event)
        return await self.append(event, request_id)

    async def append(self, event: TaskSubmitted, request_id: str | None = None) -> Accepted:
        """Put a prepared task into the log; see `submit`."""
        if (event.idempotency_key or event.retry_of) and await self._log.knows_cold(event.task_id):
            return await self._repeated(event)
        orphaned = event.expires_at is not None and not await self._set_expiry(event)
        try:
            sequence = await self._log.append(self._submission(event, request_id))
        except Conflict:
            return await self._repeated(event)
        if orphaned:
            await self._set_expiry(event, replace=True)
        return Accepted(event.task_id, sequence, True, event.run_at, _waits(event))

    async def submissions(self, events: Seq[TaskSubmitted], request_id: str | None) -> list[Append]:
        """Return what puts prepared tasks into the log; the timers of their expiries are set by then.

        Raises:
            NoServer, StreamFull: the log does not take the timers now.
        """
        ends = [(event.task_id, event.expires_at) for event in events if event.expires_at is not None]
        timers = [self._log.expiry_append(task_id, at, replace=True) for task_id, at in ends]
        for outcome in await self._log.append_all(timers):
            if isinstance(outcome, BitingLipError):
                raise outcome
        return [self._submission(event, request_id) for event in events]

    async def expire(self, task_id: TaskId) -> bool:
        """End a task that was not started in time; one that started, ended or has time left stays as it is.

        Returns false if there is no such task: its expiry is set before it, and may be due before it.

        Raises:
            NoServer: the log cannot be asked now.
        """
        task = fold(await self._log.read_task(task_id))
        if task is None:
            return False
        at, now = task.submitted.expires_at, self._log.clock()
        if at is not None and at > now and not task.ended:
            await self._log.append(self._log.expiry_append(task_id, at, replace=True))
        else:
            await self._persist(task, ExpireTask(now=now))
        return True

    async def settle(self, task: Task, command: ReleaseTask | DropTask | RequeueTask | WakeTask | FailAttempt) -> Task:
        """Carry out what nobody asked for; a task that it holds for no more stays as it is. Returns what it is then."""
        return await self._persist(task, command)

    async def cancel(self, task_id: TaskId, command: CancelTask) -> Task:
        """Cancel a task: one that waits ends at once, one that runs is asked to stop. Returns its state after that.

        Raises:
            TaskNotFound: there is no such task.
            IllegalTransition: it has ended in another way.
        """
        task = fold(await self._log.read_task(task_id))
        if task is None:
            raise await self._not_found(task_id)
        return await self._persist(task, command)

    async def _not_found(self, task_id: TaskId) -> TaskNotFound:
        await confirm_absent(self._log, task_id)
        return TaskNotFound(task_id=task_id)

    async def _persist(self, task: Task, command: WaitingCommand | FailAttempt) -> Task:
        """Carry a command out on a task; if somebody else's event was faster, on what the task is by then."""
        conflict: Conflict | None = None
        for _ in range(TRIES):
            try:
                return await self._end(task, command)
            except Conflict as error:
                conflict = error
            reread = fold(await self._log.read_task(task.id))
            if reread is None:
                raise _unheard(task.id)
            task = reread
        assert conflict is not None
        raise conflict

    async def _end(self, task: Task, command: WaitingCommand | FailAttempt) -> Task:
        decided = decide(task, command)
        if isinstance(decided, Stale):
            return task
        assert not isinstance(decided, AwaitTimer)
        after = task
        for event in decided:
            after = await self._append(after, event)
        if task.waits_for_others and not after.waits_for_others:
            await self._log.append(self._log.look_append(task.id, None))
        elif after.ended and not task.ended:
            await self._take_back(task)
        return after

    async def _take_back(self, task: Task) -> None:
        """Take a task that waited out of its queue, or withdraw the timer that would have queued it."""
        if task.state == "queued":
            await self._log.purge_queued(*route_now(task), task.id)
        elif task.state == "scheduled":
            await self._log.append(self._log.timer_withdrawal(task.id, task.attempt + 1))

    async def _append(self, task: Task, event: TaskEvent) -> Task:
        route = route_now(task) if isinstance(event, TaskQueued) else None
        if route is not None:
            await ensure_queue(self._log, task)
        expected = 0 if task.ended and await self._log.has_left(task.id) else task.sequence
        sequence = await self._log.append(self._log.task_append(event, expected, route=route))
        after = evolve(task, event, sequence, self._log.clock())
        assert after is not None
        return after

    def _submission(self, event: TaskSubmitted, request_id: str | None) -> Append:
        route = None if _waits(event) else route_of(event)
        return self._log.task_append(event, 0, route=route, causation=request_id)

    async def _set_expiry(self, event: TaskSubmitted, *, replace: bool = False) -> bool:
        """Set the timer of a task's expiry; false if one is there, left by a request that did not come to its end."""
        assert event.expires_at is not None
        try:
            await self._log.append(self._log.expiry_append(event.task_id, event.expires_at, replace=replace))
        except Conflict:
            return False
        return True

    async def prepare(
        self,
        command: SubmitTask,
        *,
        key_id: str | None = None,
        idempotency_key: str | None = None,
        task_id: TaskId | None = None,
    ) -> TaskSubmitted:
        """Return the event that will be a task's first one: it has its id, for those who want to listen before.

        Raises:
            InvalidInput: its start is too far ahead, or after its expiry; there is no such task as it is to wait for;
                it takes the result of a private task, and is not private itself.
            NoServer, StreamFull: large or private parameters cannot be stored now.
        """
        private = self.is_private(command.private)
        if command.depends_on:
            _may_depend_on(command, await require(self._log, command.depends_on), private=private)
        made = TaskId(self._log.ids()) if idempotency_key is None else task_id_for_key(key_id or "", idempotency_key)
        task_id = task_id or made
        params, params_ref = await self.stored(task_id, command.params, private=private)
        model = self._resolve(command.model)
        return TaskSubmitted(
            task_id=task_id,
            kind=command.kind,
            model=model,
            alias=None if model == command.model else command.model,
            lane=command.lane,
            params=params,
            params_ref=params_ref,
            request_sha256=await self._digest(task_id, command, private=private),
            idempotency_key=idempotency_key,
            key_id=key_id,
            metadata=command.metadata,
            retry=self._policy(command),
            requires=command.requires and Requires(**command.requires.model_dump()),
            run_at=command.starts_at(self._log.clock()),
            expires_at=command.expires_at,
            timeout_ms=None if command.timeout_s is None else round(command.timeout_s * 1000),
            depends_on=command.depends_on or None,
            on_failure=command.on_failure if command.depends_on else None,
            private=private,
        )

    async def _digest(self, task_id: TaskId, command: SubmitTask, *, private: bool) -> str:
        if not private:
            return command.sha256()
        return await privacy.request_digest(self._log.connection, task_id, command.canonical())

    def _policy(self, command: SubmitTask) -> RetryPolicy:
        """Return what the request says of retries, and where it says nothing, what holds for its kind."""
        policy = self._policies.get(command.kind, _POLICY)
        return policy.model_copy(update=command.retry.model_dump(exclude_unset=True))

    async def stored(
        self, task_id: TaskId, params: dict[str, Any], *, private: bool
    ) -> tuple[dict[str, Any] | None, ArtifactRef | None]:
        """Return a task's parameters as they are, or large ones as an artifact; private ones are a sealed artifact.

        Raises:
            NoServer, StreamFull: they cannot be stored now.
        """
        if private:
            return None, await privacy.put_params(self._log.connection, task_id, params)
        body = orjson.dumps(params)
        if len(body) <= self._inline_max_bytes:
            return params, None
        return None, await artifacts.put(self._log.connection, body, "application/json")

    async def _repeated(self, event: TaskSubmitted) -> Accepted:
        history = await self._log.read_task(event.task_id)
        task = fold(history)
        if task is None:
            raise _unheard(event.task_id)
        if event.private and event.params_ref is not None and event.params_ref != task.submitted.params_ref:
            await artifacts.drop(self._log.connection, event.params_ref.sha256)
        if task.submitted.private and await privacy.was_forgotten(self._log.connection, history):
            raise TaskIsForgotten(task_id=task.id)
        if task.submitted.request_sha256 != event.request_sha256:
            raise IdempotencyMismatch(key=event.idempotency_key or "", made=f"task {task.id}")
        return Accepted(task.id, Sequence(task.sequence), False, task.submitted.run_at, _waits(task.submitted))


def _unheard(task_id: TaskId) -> NoServer:
    """Return the error if a task is there, and a copy of the log that is behind does not know of it."""
    return NoServer(problem=f"who answered for the log had yet to hear of task {task_id}")


def _may_depend_on(command: SubmitTask, secrets: frozenset[TaskId], *, private: bool) -> None:
    """Refuse to write the results of private tasks into the log, as parameters of one that is not."""
    if not private and (taken := secrets & referred(command.params)):
        problem = f"must be true: it takes the result of task {min(taken)}, which is private"
        raise InvalidInput(field="private", problem=problem)


def _waits(event: TaskSubmitted) -> bool:
    return event.run_at is not None or event.depends_on is not None


async def _as_it_is(_: TaskSubmitted) -> None:
    """Leave the queues to the workers, which make those of anybody's work."""
