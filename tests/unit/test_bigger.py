"""A task that a card was too small for: where it goes, and what the fold and its queue make of that."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.subjects import decode_queue
from bitinglip.events.task import (
    Failure,
    RetryPolicy,
    TaskAssigned,
    TaskDeadLettered,
    TaskEvent,
    TaskFailed,
    TaskQueued,
    TaskSubmitted,
)
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import AssignAttempt, FailAttempt
from bitinglip.tasks.routing import route_now, route_of
from bitinglip.tasks.state import AwaitTimer, Task, decide, evolve
from bitinglip.workers.bigger import more_than, outgrown
from bitinglip.workers.view import GIB, CardView

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ID = TaskId("01JZ0000000000000000000000")
FULL = Failure(kind="out_of_memory", message="No room.", retryable=True)
sizes = st.integers(1, 200 * GIB)
cards = st.builds(
    CardView,
    worker_id=st.just("peer"),
    labels=st.frozensets(st.sampled_from(["eu", "fast"])),
    total_bytes=st.none() | sizes,
    serves=st.sampled_from([None, frozenset({"org/m"}), frozenset({"org/other"})]),
)


def submitted(**changes: object) -> TaskSubmitted:
    asked = {"task_id": ID, "model": "org/m", "retry": RetryPolicy(max_attempts=100)}
    return TaskSubmitted.model_validate(TaskSubmitted.example | asked | changes)


def after(*events: TaskEvent, task: Task | None = None) -> Task:
    for event in events:
        task = evolve(task, event, task.sequence + 1 if task else 1, T0)
    assert task is not None
    return task


def assigned(attempt: int) -> TaskAssigned:
    return TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID, "attempt": attempt, "worker_id": "w"})


def fail(task: Task, more: float | None, failure: Failure = FULL) -> TaskEvent:
    """Return what becomes of a running task's attempt."""
    command = FailAttempt(
        attempt=task.attempt, worker_id="w", failure=failure, run_ms=1.0, now=T0, jitter=1.0, next_vram_gb=more
    )
    decided = decide(task, command)
    assert isinstance(decided, tuple)
    return decided[0]


@given(sizes)
def test_a_bigger_card_has_more(device_bytes: int) -> None:
    assert device_bytes < more_than(device_bytes) * GIB <= device_bytes + 2 * GIB


@given(st.integers(1, 200), st.integers(1, GIB), st.integers(1, GIB))
def test_cards_of_one_size_are_no_bigger_than_each_other(size_gb: int, one_lacks: int, other_lacks: int) -> None:
    one, other = size_gb * GIB - one_lacks + 1, size_gb * GIB - other_lacks + 1
    assert more_than(one) == more_than(other) > size_gb


@given(sizes, st.lists(cards, max_size=5), st.booleans())
def test_it_goes_to_a_bigger_card_that_may_run_it_or_says_that_there_is_none(
    device_bytes: int, peers: list[CardView], labelled: bool
) -> None:
    labels = ["eu"] if labelled else []
    found = outgrown(after(submitted(requires={"labels": labels})), FULL, device_bytes, peers)
    able = [
        peer
        for peer in peers
        if (peer.total_bytes or 0) >= more_than(device_bytes) * GIB
        and peer.labels >= set(labels)
        and (peer.serves is None or "org/m" in peer.serves)
    ]
    assert found.next_vram_gb == (more_than(device_bytes) if able else None)
    assert ("No card of the cluster" in found.failure.message) == (not able)
    assert found.failure.message.startswith("No room.")
    assert (found.failure.kind, found.failure.retryable) == ("out_of_memory", True)
    assert found.failure.device_bytes == device_bytes


@given(st.floats(0, 100), st.lists(st.none() | st.floats(0.5, 200), min_size=1, max_size=6))
def test_what_it_requires_grows_and_its_queue_with_it(asked: float, steps: list[float | None]) -> None:
    first = submitted(requires={"vram_gb": asked, "labels": ["b", "a"]}, key_id="k")
    task = after(first)
    assert route_now(task) == route_of(first)
    for attempt, more in enumerate(steps, 1):
        task = after(assigned(attempt), task=task)
        assert not task.bigger_next
        before = task.vram_gb
        task = after(fail(task, more), task=task)
        assert task.vram_gb == max(before, more or 0.0)
        assert task.bigger_next == (more is not None)
        lane, queue = route_now(task)
        reference, work = decode_queue(queue)
        assert (lane, reference, work.share, work.labels) == (first.lane, "org/m", "k", ("a", "b"))
        assert f"{work.vram_gb:.12g}" == f"{task.vram_gb:.12g}"
        task = after(TaskQueued(task_id=ID, attempt=attempt + 1, reason="retry"), task=task)
    assert task.vram_gb == max(asked, *[more or 0.0 for more in steps])


def test_only_its_timer_leads_it_to_the_bigger_card() -> None:
    """The old message, which comes back to a worker that may be as small, does not: not even when it is due."""
    again = AssignAttempt(
        ready_sequence=1,
        worker_id="small",
        node_id="n",
        device="cpu",
        revision=None,
        batch_size=1,
        now=T0.max.replace(tzinfo=UTC),
    )
    for more, waits in ((9.0, True), (None, False)):
        running = after(submitted(), assigned(1))
        failed = fail(running, more)
        assert isinstance(failed, TaskFailed)
        assert failed.retry_at is not None
        decided = decide(after(failed, task=running), again)
        assert (decided == AwaitTimer(2, failed.retry_at)) == waits


def test_one_that_is_not_tried_again_requires_nothing_more() -> None:
    running = after(submitted(retry=RetryPolicy(max_attempts=1)), assigned(1))
    assert isinstance(fail(running, 9.0), TaskDeadLettered)
    once = after(submitted(retry=RetryPolicy(not_on=("out_of_memory",))), assigned(1))
    failed = fail(once, 9.0)
    assert isinstance(failed, TaskFailed)
    assert (failed.retry_at, failed.next_vram_gb) == (None, None)
