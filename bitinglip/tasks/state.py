"""The task as a fold over its events (`evolve`), and what a command leads to (`decide`): pure.

The history of a task comes back from the log in order, but two things can make an event stale by the time it is
stored: a timer fires for a task that ended meanwhile, or for an attempt that already runs. `evolve` passes such a
`queued` over; every other event out of place is a defect and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, assert_never

from bitinglip.errors import IllegalTransition, TaskNotPrivate
from bitinglip.events.envelope import Recorded, UnknownEvent
from bitinglip.events.registry import Event
from bitinglip.events.task import (
    ArtifactRef,
    Failure,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskDeadLettered,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskForgotten,
    TaskProgressed,
    TaskQueued,
    TaskSubmitted,
    TaskSucceeded,
)
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import (
    AssignAttempt,
    AttemptCommand,
    CancelTask,
    DropTask,
    ExpireTask,
    FailAttempt,
    ForgetTask,
    ProgressAttempt,
    ReleaseTask,
    RequeueTask,
    StopAttempt,
    SucceedAttempt,
    TaskCommand,
    WakeTask,
)
from bitinglip.tasks.retry import CRASHES, UNCOUNTED, DeadLetter, GiveUp, RetryAt, decide_retry

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled", "expired", "dead_lettered"]
TERMINAL: frozenset[State] = frozenset({"succeeded", "failed", "cancelled", "expired", "dead_lettered"})
TERMINAL_TYPES = frozenset({"task.succeeded", "task.cancelled", "task.expired", "task.dead_lettered"})
"""Types that always end a task; `task.failed` does when it has no `retry_at`."""

LOST_LEASE = Failure(
    kind="lost_lease", message="The worker gave no sign of life until its lease ended.", retryable=True
)
"""What became of an attempt whose worker is gone."""


class Task(NamedTuple):
    """A task as its events tell it.

    A tuple, since a worker makes several for each task and `dataclasses.replace` costs five times `_replace`.
    """

    id: TaskId
    submitted: TaskSubmitted
    state: State
    sequence: int
    """Sequence of its last event: what the next append expects."""
    ready_sequence: int
    """Sequence of the event that last made it ready to run (`submitted` or `queued`)."""
    ready_at: datetime
    attempt: int = 0
    """Number of the latest attempt; 0 before the first."""
    failures: int = 0
    """Failed attempts that count against the retry policy."""
    crashes: int = 0
    """Those of them that ended with the process that ran them, which may be the task's own doing."""
    worker_id: str | None = None
    retry_at: datetime | None = None
    outgrown: float = 0.0
    """GiB that its device must have since it ran out of memory on smaller ones; 0: it has not, or there is no other."""
    bigger_next: bool = False
    """Whether the latest attempt was the one that was too small: the next one is for a bigger device alone."""
    cancel: TaskCancelRequested | None = None
    released: TaskQueued | None = None
    """What ended its wait for other tasks, if it brought parameters in place of the submitted ones."""
    forgotten: bool = False
    """Whether its key was destroyed."""

    @property
    def params(self) -> dict[str, Any] | None:
        """What it runs with; none when that is in an artifact."""
        return self.submitted.params if self.released is None else self.released.params

    @property
    def params_ref(self) -> ArtifactRef | None:
        """The artifact that holds what it runs with, if one does."""
        return self.submitted.params_ref if self.released is None else self.released.params_ref

    @property
    def vram_gb(self) -> float:
        """GiB that its device must have: as was asked for, or more if it has outgrown that; 0: any will do."""
        asked = self.submitted.requires
        return max(asked.vram_gb if asked is not None else 0.0, self.outgrown)

    @property
    def waits_for_others(self) -> bool:
        """Whether it has yet to be released, or dropped, by what becomes of the tasks before it."""
        return self.state == "scheduled" and self.attempt == 0 and self.submitted.depends_on is not None

    @property
    def ended(self) -> bool:
        """Whether the task has its terminal event."""
        return self.state in TERMINAL


@dataclass(frozen=True, slots=True)
class Stale:
    """The command comes from a writer that no longer holds the attempt, or from a message that was overtaken."""


@dataclass(frozen=True, slots=True)
class AwaitTimer:
    """The task waits for its next attempt: its timer must be set, and is all that is missing."""

    attempt: int
    at: datetime


Decision = tuple[TaskEvent, ...] | Stale | AwaitTimer


def awaited_timer(task: Task) -> AwaitTimer | None:
    """Return what a task waits for that is to be queued later, at first or once more; none for any other task."""
    at = task.retry_at if task.attempt else task.submitted.run_at
    return AwaitTimer(task.attempt + 1, at) if task.state == "scheduled" and at is not None else None


def queued_in_time(task: Task, wait: AwaitTimer) -> TaskQueued:
    """Return the event that ends a task's wait for its time: a timer's, or in its place."""
    reason = "bigger_card" if task.bigger_next else "retry" if task.attempt else "scheduled"
    return TaskQueued(task_id=task.id, attempt=wait.attempt, reason=reason)


def fold(history: Iterable[Recorded]) -> Task | None:
    """Return the task that this history tells; none if it has no `submitted`."""
    task: Task | None = None
    for recorded in history:
        task = evolve(task, recorded.event, recorded.sequence, recorded.time)
    return task


def evolve(task: Task | None, event: Event, sequence: int, at: datetime) -> Task | None:
    """Return the task after one more event, stored at `sequence` and dated `at`.

    Raises:
        IllegalTransition: the event has no place in the task's state.
    """
    if task is None:
        return _begin(event, sequence, at)
    if isinstance(event, UnknownEvent):
        return task._replace(sequence=sequence)
    if not isinstance(event, TaskEvent) or not _legal(task, event):
        raise IllegalTransition(task_id=task.id, state=task.state, action=event.type)
    return _apply(task, event, sequence, at)


def decide(task: Task, command: TaskCommand) -> Decision:
    """Return the events that a command leads to; several are appended one after the other.

    Raises:
        IllegalTransition: the task's state does not allow the command.
    """
    match command:
        case CancelTask():
            return _decide_cancel(task, command)
        case ExpireTask():
            return _decide_expire(task, command)
        case ReleaseTask() | DropTask():
            return _decide_dependent(task, command)
        case RequeueTask():
            return _decide_requeue(task, command)
        case WakeTask():
            return _decide_wake(task, command)
        case ForgetTask():
            return _decide_forget(task, command)
        case AssignAttempt():
            return _decide_assign(task, command)
        case ProgressAttempt() | SucceedAttempt() | FailAttempt() | StopAttempt():
            if task.state != "running" or (task.attempt, task.worker_id) != (command.attempt, command.worker_id):
                return Stale()
            return (_decide_attempt(task, command),)
        case _:
            assert_never(command)


def again(submitted: TaskSubmitted, task_id: TaskId, now: datetime) -> TaskSubmitted:
    """Return the first event of a task that asks for the same once more, at once; an expiry that has passed is gone."""
    expires_at = submitted.expires_at if submitted.expires_at is not None and submitted.expires_at > now else None
    new = {"task_id": task_id, "retry_of": submitted.task_id, "run_at": None, "expires_at": expires_at}
    return submitted.model_copy(update=new | {"idempotency_key": None, "batch_id": None})


def is_terminal(event: Event) -> bool:
    """Tell whether this event ends its task."""
    return event.type in TERMINAL_TYPES or (isinstance(event, TaskFailed) and event.retry_at is None)


# --- evolve -----------------------------------------------------------------------------------------------------------


def _begin(event: Event, sequence: int, at: datetime) -> Task | None:
    if not isinstance(event, TaskSubmitted):
        return None
    return Task(
        id=event.task_id,
        submitted=event,
        state="scheduled" if event.run_at or event.depends_on else "queued",
        sequence=sequence,
        ready_sequence=sequence,
        ready_at=at,
    )


def _legal(task: Task, event: TaskEvent) -> bool:
    match event:
        case TaskQueued():
            return True
        case TaskAssigned():
            return task.state in {"queued", "scheduled"} and event.attempt == task.attempt + 1
        case TaskProgressed() | TaskSucceeded() | TaskFailed():
            return task.state == "running" and event.attempt == task.attempt
        case TaskDeadLettered():
            return task.state == "running" and event.attempt == task.attempt
        case TaskCancelRequested() | TaskCancelled():
            return not task.ended
        case TaskExpired():
            return task.state in {"queued", "scheduled"}
        case TaskForgotten():
            return task.ended
        case _:
            return False


def _apply(task: Task, event: TaskEvent, sequence: int, at: datetime) -> Task:
    match event:
        case TaskQueued():
            return _apply_queued(task, event, sequence, at)
        case TaskAssigned(attempt=attempt, worker_id=worker_id):
            return task._replace(
                sequence=sequence,
                state="running",
                attempt=attempt,
                worker_id=worker_id,
                retry_at=None,
                bigger_next=False,
            )
        case TaskFailed():
            return _apply_failed(task, event, sequence)
        case TaskCancelRequested():
            return task._replace(sequence=sequence, cancel=event)
        case TaskSucceeded():
            return task._replace(sequence=sequence, state="succeeded")
        case TaskCancelled():
            return task._replace(sequence=sequence, state="cancelled")
        case TaskExpired():
            return task._replace(sequence=sequence, state="expired")
        case TaskDeadLettered():
            return task._replace(sequence=sequence, state="dead_lettered", failures=task.failures + 1)
        case TaskForgotten():
            return task._replace(sequence=sequence, forgotten=True)
        case _:
            return task._replace(sequence=sequence)


def _apply_queued(task: Task, event: TaskQueued, sequence: int, at: datetime) -> Task:
    if event.reason == "stranded" and task.state == "queued" and event.attempt == task.attempt + 1:
        return task._replace(sequence=sequence, ready_sequence=sequence)
    if task.state != "scheduled" or event.attempt != task.attempt + 1:
        return task._replace(sequence=sequence)
    task = task._replace(sequence=sequence, state="queued", ready_sequence=sequence, ready_at=at)
    changed = event.params is not None or event.params_ref is not None
    return task._replace(released=event) if changed else task


def _apply_failed(task: Task, event: TaskFailed, sequence: int) -> Task:
    task = task._replace(
        sequence=sequence,
        failures=task.failures + (event.failure.kind not in UNCOUNTED),
        crashes=task.crashes + (event.failure.kind in CRASHES),
    )
    if event.retry_at is None:
        return task._replace(state="failed")
    return task._replace(
        state="scheduled",
        retry_at=event.retry_at,
        ready_at=event.retry_at,
        outgrown=max(task.outgrown, event.next_vram_gb or 0.0),
        bigger_next=event.next_vram_gb is not None,
    )


# --- decide -----------------------------------------------------------------------------------------------------------


def _decide_cancel(task: Task, command: CancelTask) -> Decision:
    if task.state == "cancelled" or (task.cancel is not None and not task.ended):
        return ()
    if task.ended:
        raise IllegalTransition(task_id=task.id, state=task.state, action="be cancelled")
    if task.state == "running":
        return (TaskCancelRequested(task_id=task.id, by=command.by, reason=command.reason),)
    return (TaskCancelled(task_id=task.id, by=command.by, reason=command.reason),)


def _decide_expire(task: Task, command: ExpireTask) -> Decision:
    if not is_expired(task, command.now) or task.state == "running":
        return ()
    return (_expiry(task),)


def _decide_dependent(task: Task, command: ReleaseTask | DropTask) -> Decision:
    if not task.waits_for_others:
        return ()
    if isinstance(command, DropTask):
        return (TaskCancelled(task_id=task.id, reason=command.reason),)
    return (
        TaskQueued(task_id=task.id, attempt=1, reason="released", params=command.params, params_ref=command.params_ref),
    )


def _decide_requeue(task: Task, command: RequeueTask) -> Decision:
    if task.state != "queued" or task.ready_sequence != command.ready_sequence:
        return ()
    return (TaskQueued(task_id=task.id, attempt=task.attempt + 1, reason="stranded"),)


def _decide_wake(task: Task, command: WakeTask) -> Decision:
    wait = awaited_timer(task)
    if wait is None or wait.at > command.now:
        return ()
    return (queued_in_time(task, wait),)


def _decide_forget(task: Task, command: ForgetTask) -> Decision:
    if not task.ended:
        action = "be forgotten before its end: cancel it first"
        raise IllegalTransition(task_id=task.id, state=task.state, action=action)
    if not task.submitted.private:
        raise TaskNotPrivate(task_id=task.id)
    return () if task.forgotten else (TaskForgotten(task_id=task.id, by=command.by),)


def is_expired(task: Task, now: datetime) -> bool:
    """Whether the task's time to start has passed before its first attempt."""
    expires_at = task.submitted.expires_at
    return task.attempt == 0 and not task.ended and expires_at is not None and expires_at <= now


def _expiry(task: Task) -> TaskExpired:
    assert task.submitted.expires_at is not None
    return TaskExpired(task_id=task.id, expires_at=task.submitted.expires_at)


def _decide_assign(task: Task, command: AssignAttempt) -> Decision:
    if task.ended or command.ready_sequence != task.ready_sequence:
        return Stale()
    if task.state == "running":
        return _take_over(task, command)
    if task.cancel is not None:
        return (_cancelled(task),)
    if is_expired(task, command.now):
        return (_expiry(task),)
    if task.retry_at is not None and task.state == "scheduled" and (task.bigger_next or task.retry_at > command.now):
        return AwaitTimer(task.attempt + 1, task.retry_at)  # through its timer alone it comes to a bigger device
    return (_assigned(task, command),)


def _take_over(task: Task, command: AssignAttempt) -> Decision:
    """The message of a running attempt came back: its lease has ended."""
    assert task.worker_id is not None
    lost = FailAttempt(
        attempt=task.attempt, worker_id=task.worker_id, failure=LOST_LEASE, run_ms=0.0, now=command.now, jitter=0.0
    )
    failed = _fail(task, lost)
    if is_terminal(failed):
        return (failed,)
    return (failed, _assigned(task, command))


def _assigned(task: Task, command: AssignAttempt) -> TaskAssigned:
    waited = command.now - task.ready_at
    return TaskAssigned(
        task_id=task.id,
        attempt=task.attempt + 1,
        worker_id=command.worker_id,
        node_id=command.node_id,
        device=command.device,
        revision=command.revision,
        wait_ms=max(0, round(waited.total_seconds() * 1000)),
        batch_size=command.batch_size,
    )


def _decide_attempt(task: Task, command: AttemptCommand) -> TaskEvent:
    match command:
        case ProgressAttempt():
            return TaskProgressed(
                task_id=task.id,
                attempt=command.attempt,
                step=command.step,
                total=command.total,
                unit=command.unit,
                text=command.text,
                reasoning=command.reasoning,
                left_ms=command.left_ms,
                preview=command.preview,
                sealed=command.sealed,
            )
        case SucceedAttempt():
            return TaskSucceeded(
                task_id=task.id,
                attempt=command.attempt,
                worker_id=command.worker_id,
                result=command.result,
                result_ref=command.result_ref,
                usage=command.usage,
                run_ms=command.run_ms,
                load_ms=command.load_ms,
                device=command.device,
                dtype=command.dtype,
                versions=command.versions,
                files=command.files,
            )
        case FailAttempt():
            return _fail(task, command)
        case StopAttempt():
            return _cancelled(task)
        case _:
            assert_never(command)


def _fail(task: Task, command: FailAttempt) -> TaskEvent:
    if task.cancel is not None:
        return _cancelled(task)
    failure, run_ms = command.failure, command.run_ms
    failed = TaskFailed(
        task_id=task.id, attempt=task.attempt, worker_id=command.worker_id, failure=failure, run_ms=run_ms
    )
    match decide_retry(task.submitted.retry, failure, task.failures + 1, command.now, command.jitter):
        case RetryAt(at):
            return failed.model_copy(update={"retry_at": at, "next_vram_gb": command.next_vram_gb})
        case GiveUp():
            return failed
        case DeadLetter():
            return TaskDeadLettered(
                task_id=task.id, attempt=task.attempt, worker_id=command.worker_id, failure=failure, run_ms=run_ms
            )


def _cancelled(task: Task) -> TaskCancelled:
    cancel = task.cancel
    return TaskCancelled(
        task_id=task.id,
        attempt=task.attempt or None,
        by=cancel.by if cancel else None,
        reason=cancel.reason if cancel else None,
    )
