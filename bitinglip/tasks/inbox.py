"""Command -> decide -> append; a conflict means: read again, decide again."""

from __future__ import annotations

from dataclasses import dataclass

import orjson

from bitinglip.errors import Conflict, IdempotencyMismatch, TaskNotFound
from bitinglip.events import artifacts, subjects
from bitinglip.events.log import EventLog
from bitinglip.events.task import ArtifactRef, Requires, RetryPolicy, TaskEvent, TaskSubmitted
from bitinglip.ids import Sequence, TaskId, task_id_for_key
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.routing import route_of
from bitinglip.tasks.state import AwaitTimer, Stale, Task, decide, evolve, fold

TRIES = 20
"""How often a command is decided again before its conflict is the caller's to hear of."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A task is in the log."""

    task_id: TaskId
    sequence: Sequence
    created: bool
    """Whether this request made it; not so for the repeat of an idempotency key."""


class Inbox:
    """Where commands enter."""

    def __init__(self, log: EventLog, inline_max_bytes: int) -> None:
        self._log = log
        self._inline_max_bytes = inline_max_bytes

    async def submit(
        self,
        command: SubmitTask,
        *,
        key_id: str | None = None,
        idempotency_key: str | None = None,
        request_id: str | None = None,
    ) -> Accepted:
        """Put a task into the log; when this returns it will not be lost.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            NoServer, StreamFull: the log does not take it now.
        """
        event = await self.prepare(command, key_id=key_id, idempotency_key=idempotency_key)
        return await self.append(event, request_id)

    async def append(self, event: TaskSubmitted, request_id: str | None = None) -> Accepted:
        """Put a prepared task into the log; see `submit`."""
        try:
            append = self._log.task_append(event, 0, route=route_of(event), causation=request_id)
            sequence = await self._log.append(append)
        except Conflict:
            return await self._repeated(event)
        return Accepted(event.task_id, sequence, created=True)

    async def cancel(self, task_id: TaskId, command: CancelTask) -> Task:
        """Cancel a task: one that waits ends at once, one that runs is asked to stop. Returns its state after that.

        Raises:
            TaskNotFound: there is no such task.
            IllegalTransition: it has ended in another way.
        """
        conflict: Conflict | None = None
        for _ in range(TRIES):
            task = fold(await self._log.read_task(task_id))
            if task is None:
                raise TaskNotFound(task_id=task_id)
            try:
                return await self._cancel(task, command)
            except Conflict as error:
                conflict = error
        assert conflict is not None
        raise conflict

    async def _cancel(self, task: Task, command: CancelTask) -> Task:
        waiting = task.state == "queued"
        decided = decide(task, command)
        assert not isinstance(decided, Stale | AwaitTimer)
        for event in decided:
            task = await self._append(task, event)
        if decided and waiting:
            await self._log.purge_queued(*route_of(task.submitted), task.id)
        return task

    async def _append(self, task: Task, event: TaskEvent) -> Task:
        sequence = await self._log.append(self._log.task_append(event, task.sequence))
        after = evolve(task, event, sequence, self._log.clock())
        assert after is not None
        return after

    async def prepare(
        self, command: SubmitTask, *, key_id: str | None = None, idempotency_key: str | None = None
    ) -> TaskSubmitted:
        """Return the event that will be a task's first one: it has its id, for those who want to listen before.

        Raises:
            NoServer, StreamFull: large parameters cannot be stored now.
        """
        params, params_ref = await self._inline_or_artifact(command)
        made = TaskId(self._log.ids()) if idempotency_key is None else task_id_for_key(key_id or "", idempotency_key)
        return TaskSubmitted(
            task_id=made,
            kind=command.kind,
            model=command.model,
            lane=command.lane,
            params=params,
            params_ref=params_ref,
            request_sha256=command.sha256(),
            idempotency_key=idempotency_key,
            key_id=key_id,
            metadata=command.metadata,
            retry=RetryPolicy(**command.retry.model_dump()),
            requires=command.requires and Requires(**command.requires.model_dump()),
            expires_at=command.expires_at,
            timeout_ms=None if command.timeout_s is None else round(command.timeout_s * 1000),
        )

    async def _inline_or_artifact(self, command: SubmitTask) -> tuple[dict[str, object] | None, ArtifactRef | None]:
        body = orjson.dumps(command.params)
        if len(body) <= self._inline_max_bytes:
            return command.params, None
        return None, await artifacts.put(self._log.connection, body, "application/json")

    async def _repeated(self, event: TaskSubmitted) -> Accepted:
        task = fold(await self._log.read_task(event.task_id))
        if task is None:
            raise Conflict(subject=subjects.task_events(event.task_id), expected=0)
        if task.submitted.request_sha256 != event.request_sha256:
            raise IdempotencyMismatch(key=event.idempotency_key or "", task_id=task.id)
        return Accepted(task.id, Sequence(task.sequence), created=False)
