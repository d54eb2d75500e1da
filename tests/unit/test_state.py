"""The task's state machine: given events, when a command, then events; and by property, over whole lives."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import IllegalTransition, TaskNotPrivate
from bitinglip.events.registry import Event
from bitinglip.events.task import (
    Failure,
    RetryPolicy,
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
    Usage,
)
from bitinglip.events.worker import WorkerStopped
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import (
    AssignAttempt,
    CancelTask,
    DropTask,
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
from bitinglip.tasks.state import AwaitTimer, Decision, Stale, Task, decide, evolve, is_terminal

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ID = TaskId("01JZ0000000000000000000000")
CRASH = Failure(kind="engine_crashed", message="gone", retryable=True)
BAD = Failure(kind="bad_input", message="no", retryable=False)
STOPPED = Failure(kind="worker_stopped", message="bye", retryable=True)


def submitted(**changes: object) -> TaskSubmitted:
    return TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID, "retry": RetryPolicy()} | changes)


def assigned(attempt: int = 1, worker: str = "w") -> TaskAssigned:
    return TaskAssigned.model_validate(
        TaskAssigned.example | {"task_id": ID, "attempt": attempt, "worker_id": worker, "node_id": "n"}
    )


def failed(attempt: int = 1, failure: Failure = CRASH, retry_at: datetime | None = T0) -> TaskFailed:
    return TaskFailed(task_id=ID, attempt=attempt, worker_id="w", failure=failure, retry_at=retry_at)


def given_events(*events: Event) -> Task:
    task: Task | None = None
    for sequence, event in enumerate(events, 1):
        task = evolve(task, event, sequence, T0 + timedelta(seconds=sequence))
    assert task is not None
    return task


def assign(ready_sequence: int = 1, worker: str = "w", now: datetime = T0 + timedelta(minutes=1)) -> AssignAttempt:
    return AssignAttempt(
        ready_sequence=ready_sequence,
        worker_id=worker,
        node_id="n",
        device="cpu",
        revision=None,
        batch_size=1,
        now=now,
    )


def succeed(attempt: int = 1, worker: str = "w") -> SucceedAttempt:
    return SucceedAttempt(attempt=attempt, worker_id=worker, result={}, usage=Usage(), run_ms=1.0, versions={})


def fail(failure: Failure, attempt: int = 1, worker: str = "w") -> FailAttempt:
    return FailAttempt(attempt=attempt, worker_id=worker, failure=failure, run_ms=1.0, now=T0, jitter=1.0)


def types(decision: Decision) -> list[str]:
    assert isinstance(decision, tuple)
    return [event.type for event in decision]


def test_a_submitted_task_is_queued_and_can_be_assigned() -> None:
    task = given_events(submitted())
    assert (task.state, task.attempt, task.ready_sequence) == ("queued", 0, 1)
    (event,) = events_of(decide(task, assign()))
    assert isinstance(event, TaskAssigned)
    assert (event.attempt, event.wait_ms) == (1, 59_000)


def events_of(decision: Decision) -> tuple[TaskEvent, ...]:
    assert isinstance(decision, tuple)
    return decision


def test_a_task_with_a_start_time_is_scheduled() -> None:
    assert given_events(submitted(run_at=T0)).state == "scheduled"


def test_the_happy_path_ends_once() -> None:
    task = given_events(submitted(), assigned(), *events_of(decide(given_events(submitted(), assigned()), succeed())))
    assert task.state == "succeeded"
    assert decide(task, succeed()) == Stale()
    assert decide(task, assign()) == Stale()
    with pytest.raises(IllegalTransition):
        decide(task, CancelTask())


def test_a_crash_is_retried_after_a_wait() -> None:
    (event,) = events_of(decide(given_events(submitted(), assigned()), fail(CRASH)))
    assert isinstance(event, TaskFailed)
    assert event.retry_at == T0 + timedelta(seconds=1)


def test_bad_input_ends_the_task() -> None:
    (event,) = events_of(decide(given_events(submitted(), assigned()), fail(BAD)))
    assert isinstance(event, TaskFailed)
    assert event.retry_at is None
    assert is_terminal(event)
    assert given_events(submitted(), assigned(), event).state == "failed"


def test_the_last_attempt_is_dead_lettered() -> None:
    history = [submitted(retry=RetryPolicy(max_attempts=2)), assigned(1), failed(1), assigned(2)]
    (event,) = events_of(decide(given_events(*history), fail(CRASH, attempt=2)))
    assert isinstance(event, TaskDeadLettered)
    assert given_events(*history, event).state == "dead_lettered"


def test_a_stopped_worker_uses_up_no_attempt() -> None:
    history: list[TaskEvent] = [submitted(retry=RetryPolicy(max_attempts=1))]
    for attempt in range(1, 6):
        history.append(assigned(attempt))
        (event,) = events_of(decide(given_events(*history), fail(STOPPED, attempt=attempt)))
        assert isinstance(event, TaskFailed)
        assert event.retry_at == T0
        history.append(event)
    assert given_events(*history).failures == 0


def test_a_lost_lease_is_written_down_before_the_next_attempt() -> None:
    task = given_events(submitted(), assigned(1, "dead"))
    lost, taken = events_of(decide(task, assign(worker="w2")))
    assert isinstance(lost, TaskFailed)
    assert (lost.failure.kind, lost.worker_id, lost.attempt) == ("lost_lease", "dead", 1)
    assert isinstance(taken, TaskAssigned)
    assert (taken.attempt, taken.worker_id) == (2, "w2")
    given_events(submitted(), assigned(1, "dead"), lost, taken)


def test_a_poison_task_is_dead_lettered_by_the_one_who_finds_it() -> None:
    task = given_events(submitted(retry=RetryPolicy(max_attempts=1)), assigned(1, "dead"))
    assert types(decide(task, assign(worker="w2"))) == ["task.dead_lettered"]


def test_a_fenced_worker_can_write_nothing() -> None:
    task = given_events(submitted(), assigned(1, "w"), failed(1), assigned(2, "w2"))
    progress = ProgressAttempt(attempt=1, worker_id="w", step=1)
    commands: list[TaskCommand] = [succeed(), fail(CRASH), progress, StopAttempt(attempt=1, worker_id="w")]
    assert [decide(task, command) for command in commands] == [Stale()] * 4
    assert decide(task, succeed(attempt=2, worker="w")) == Stale()


def test_an_overtaken_work_message_is_stale() -> None:
    task = given_events(submitted(), assigned(), failed(retry_at=T0), queued(2))
    assert task.ready_sequence == 4
    assert decide(task, assign(ready_sequence=1)) == Stale()
    assert types(decide(task, assign(ready_sequence=4))) == ["task.assigned"]


def queued(attempt: int) -> TaskQueued:
    return TaskQueued(task_id=ID, attempt=attempt, reason="retry")


def test_a_retry_that_is_not_due_waits_for_its_timer() -> None:
    at = T0 + timedelta(hours=1)
    task = given_events(submitted(), assigned(), failed(retry_at=at))
    assert task.state == "scheduled"
    assert decide(task, assign(now=T0)) == AwaitTimer(2, at)
    assert types(decide(task, assign(now=at))) == ["task.assigned"]


@pytest.mark.parametrize(
    "history",
    [
        [submitted(), assigned(), failed(), assigned(2), queued(2)],
        [submitted(), TaskCancelled(task_id=ID), queued(1)],
        [submitted(), assigned(), queued(1)],
        [submitted(), queued(1)],
    ],
)
def test_a_stale_timer_changes_nothing_but_the_sequence(history: list[TaskEvent]) -> None:
    before, after = given_events(*history[:-1]), given_events(*history)
    assert after.sequence == before.sequence + 1
    assert (after.state, after.attempt, after.ready_sequence) == (before.state, before.attempt, before.ready_sequence)


def test_a_task_whose_work_message_is_lost_gets_another_one_and_the_lost_one_is_stale() -> None:
    task = given_events(submitted())
    (event,) = events_of(decide(task, RequeueTask(ready_sequence=1)))
    after = evolve(task, event, 2, T0)
    assert after is not None
    assert after == task._replace(sequence=2, ready_sequence=2)
    assert decide(after, assign(ready_sequence=1)) == Stale()
    assert types(decide(after, assign(ready_sequence=2))) == ["task.assigned"]


@pytest.mark.parametrize(
    "history",
    [
        [submitted(), assigned()],
        [submitted(), assigned(), failed()],
        [submitted(), TaskCancelled(task_id=ID)],
        [submitted(), assigned(), failed(), queued(2)],
    ],
)
def test_no_other_task_is_queued_by_that(history: list[TaskEvent]) -> None:
    task = given_events(*history)
    assert decide(task, RequeueTask(ready_sequence=1)) == ()
    late = TaskQueued(task_id=ID, attempt=max(1, task.attempt), reason="stranded")
    assert evolve(task, late, task.sequence + 1, T0) == task._replace(sequence=task.sequence + 1)


@pytest.mark.parametrize(
    ("history", "attempt", "reason"),
    [
        ([submitted(run_at=T0)], 1, "scheduled"),
        ([submitted(run_at=T0), queued(1), assigned(), failed()], 2, "retry"),
        ([submitted(), assigned(), failed().model_copy(update={"next_vram_gb": 9.0})], 2, "bigger_card"),
    ],
)
def test_a_task_whose_time_has_come_is_queued_without_its_timer(
    history: list[TaskEvent], attempt: int, reason: str
) -> None:
    task = given_events(*history)
    assert decide(task, WakeTask(now=T0 - timedelta(seconds=1))) == ()
    (event,) = events_of(decide(task, WakeTask(now=T0)))
    assert event == TaskQueued(task_id=ID, attempt=attempt, reason=reason)  # pyright: ignore[reportArgumentType]
    after = evolve(task, event, 9, T0)
    assert after is not None
    assert (after.state, after.ready_sequence) == ("queued", 9)


@pytest.mark.parametrize(
    "history",
    [
        [submitted()],
        [submitted(depends_on=("01JZ0000000000000000000001",))],
        [submitted(run_at=T0), queued(1)],
        [submitted(), assigned()],
        [submitted(run_at=T0), TaskCancelled(task_id=ID)],
    ],
)
def test_nothing_else_is_woken(history: list[TaskEvent]) -> None:
    assert decide(given_events(*history), WakeTask(now=T0 + timedelta(days=1))) == ()


def test_cancelling_a_waiting_task_ends_it() -> None:
    (event,) = events_of(decide(given_events(submitted()), CancelTask(by="me", reason="r")))
    assert isinstance(event, TaskCancelled)
    assert (event.by, event.reason, event.attempt) == ("me", "r", None)


def test_cancelling_a_running_task_asks_its_worker() -> None:
    running = given_events(submitted(), assigned())
    assert types(decide(running, CancelTask(by="me"))) == ["task.cancel_requested"]
    asked = given_events(submitted(), assigned(), TaskCancelRequested(task_id=ID, by="me"))
    assert decide(asked, CancelTask()) == ()
    (event,) = events_of(decide(asked, StopAttempt(attempt=1, worker_id="w")))
    assert isinstance(event, TaskCancelled)
    assert (event.by, event.attempt) == ("me", 1)
    assert types(decide(asked, fail(CRASH))) == ["task.cancelled"]
    assert types(decide(asked, succeed())) == ["task.succeeded"]
    assert types(decide(asked, assign(worker="w2"))) == ["task.cancelled"]


def test_cancelling_twice_is_fine() -> None:
    assert decide(given_events(submitted(), TaskCancelled(task_id=ID)), CancelTask()) == ()


def test_a_late_task_expires() -> None:
    task = given_events(submitted(expires_at=T0))
    assert types(decide(task, assign(now=T0))) == ["task.expired"]
    assert types(decide(task, assign(now=T0 - timedelta(seconds=1)))) == ["task.assigned"]


ILLEGAL: list[tuple[list[TaskEvent], Event]] = [
    ([submitted()], submitted()),
    ([submitted()], assigned(2)),
    ([submitted()], TaskProgressed(task_id=ID, attempt=1, step=1)),
    ([submitted()], TaskSucceeded(task_id=ID, attempt=1, worker_id="w", run_ms=1)),
    ([submitted(), assigned()], assigned(2)),
    ([submitted(), assigned()], TaskSucceeded(task_id=ID, attempt=2, worker_id="w", run_ms=1)),
    ([submitted(), assigned()], TaskExpired(task_id=ID, expires_at=T0)),
    ([submitted(), TaskCancelled(task_id=ID)], TaskCancelled(task_id=ID)),
    ([submitted(), TaskCancelled(task_id=ID)], assigned()),
    ([submitted(), assigned(), failed(retry_at=None)], failed(retry_at=None)),
    ([submitted()], WorkerStopped(worker_id="w", node_id="n", reason="signal")),
]


@pytest.mark.parametrize(("history", "event"), ILLEGAL)
def test_an_event_out_of_place_is_refused(history: list[TaskEvent], event: Event) -> None:
    with pytest.raises(IllegalTransition):
        given_events(*history, event)


def test_events_before_the_submission_make_no_task() -> None:
    assert evolve(None, queued(1), 1, T0) is None


def commands(task: Task) -> st.SearchStrategy[TaskCommand]:
    """Anything that anybody may ask of a task, sensible or not."""
    attempts = st.integers(max(1, task.attempt - 1), task.attempt + 1)
    workers = st.sampled_from(["w", "w2"])
    return st.one_of(
        st.builds(CancelTask),
        st.builds(ReleaseTask, params=st.sampled_from([None, {"prompt": "Twice"}])),
        st.builds(DropTask, reason=st.just("why")),
        st.builds(assign, st.sampled_from([task.ready_sequence, task.ready_sequence - 1]), workers),
        st.builds(succeed, attempts, workers),
        st.builds(fail, st.sampled_from([CRASH, BAD, STOPPED]), attempts, workers),
        st.builds(lambda a, w: ProgressAttempt(attempt=a, worker_id=w, step=1), attempts, workers),
        st.builds(lambda a, w: StopAttempt(attempt=a, worker_id=w), attempts, workers),
    )


@given(st.data(), st.integers(1, 4))
def test_whatever_is_asked_a_task_ends_at_most_once_and_every_decision_is_legal(data: st.DataObject, most: int) -> None:
    depends_on = data.draw(st.sampled_from([None, [ID]]))
    task = given_events(submitted(retry=RetryPolicy(max_attempts=most), depends_on=depends_on))
    terminals = 0
    for _ in range(data.draw(st.integers(0, 25))):
        try:
            decision = decide(task, data.draw(commands(task)))
        except IllegalTransition:
            assert task.ended
            continue
        for event in decision if isinstance(decision, tuple) else ():
            after = evolve(task, event, task.sequence + 1, T0)
            assert after is not None
            task = after
            terminals += is_terminal(event)
        if task.state == "scheduled" and data.draw(st.booleans()):
            after = evolve(task, queued(task.attempt + 1), task.sequence + 1, T0)
            assert after is not None
            assert after.state == "queued"
            task = after
    assert terminals == task.ended
    assert task.failures <= most


def test_a_task_is_forgotten_after_its_end_once_and_only_if_it_is_private() -> None:
    with pytest.raises(IllegalTransition, match="cancel it first"):
        decide(given_events(submitted(private=True)), ForgetTask())
    history = [submitted(private=True), TaskCancelled(task_id=ID)]
    [event] = decided(decide(given_events(*history), ForgetTask(by="k")))
    assert event == TaskForgotten(task_id=ID, by="k")
    after = given_events(*history, event)
    assert (after.state, after.sequence, after.forgotten) == ("cancelled", 3, True)
    assert decide(after, ForgetTask()) == ()
    with pytest.raises(TaskNotPrivate):
        decide(given_events(submitted(), TaskCancelled(task_id=ID)), ForgetTask())


def decided(decision: Decision) -> tuple[TaskEvent, ...]:
    assert isinstance(decision, tuple)
    return decision
