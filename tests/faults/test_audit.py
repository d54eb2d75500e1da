"""What asks the log finds what it is there to find."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from bitinglip.events.envelope import Recorded
from bitinglip.events.registry import Event
from bitinglip.events.task import Failure, TaskAssigned, TaskFailed, TaskProgressed, TaskSubmitted, TaskSucceeded
from bitinglip.ids import EventId, Sequence, TaskId
from tests.faults.audit import Blow, audit, takeovers

ID = TaskId("01JZ0000000000000000000000")
T0 = datetime(2026, 1, 1, tzinfo=UTC)
ENDS = {"": ("succeeded",)}
SUBMITTED = TaskSubmitted.model_validate(TaskSubmitted.example)
LOST = TaskFailed(
    task_id=ID,
    attempt=1,
    worker_id="w1",
    failure=Failure(kind="lost_lease", message="gone", retryable=True),
    retry_at=T0,
)


def assigned(attempt: int, worker: str) -> TaskAssigned:
    return TaskAssigned.model_validate(TaskAssigned.example | {"attempt": attempt, "worker_id": worker})


def progressed(attempt: int) -> TaskProgressed:
    return TaskProgressed(task_id=ID, attempt=attempt, step=1)


def succeeded(attempt: int, worker: str) -> TaskSucceeded:
    return TaskSucceeded(task_id=ID, attempt=attempt, worker_id=worker, run_ms=1.0)


def at(second: float) -> datetime:
    return T0 + timedelta(seconds=second)


def history(*events: Event) -> list[Recorded]:
    return [
        Recorded(
            "TASKS", Sequence(number), at(number), "", EventId(str(number)), event.type, "/", at(number), None, event
        )
        for number, event in enumerate(events, 1)
    ]


TAKEN_OVER = history(SUBMITTED, assigned(1, "w1"), LOST, assigned(2, "w2"), progressed(2), succeeded(2, "w2"))


def test_a_life_with_a_lost_attempt_is_fine_and_is_measured() -> None:
    told = audit(TAKEN_OVER, ENDS)
    assert not told.findings
    assert (told.state, len(told.runs), told.whole_s) == ("succeeded", 2, 5.0)
    blow = Blow("worker killed", at(2.5), (7,))
    assert takeovers([told], [blow], {7: "w1"}) == {"worker killed": [1.5]}
    assert takeovers([told], [blow], {7: "w2"}) == {}


@pytest.mark.parametrize(
    ("events", "finding"),
    [
        ([], "not in the log"),
        ([SUBMITTED], "waits for ever"),
        ([SUBMITTED, assigned(1, "w1"), succeeded(1, "w1"), succeeded(1, "w1")], "2 terminal events"),
        ([SUBMITTED, assigned(1, "w1"), assigned(2, "w2"), succeeded(2, "w2")], "while w1 holds another"),
        ([SUBMITTED, assigned(1, "w1"), LOST, progressed(1), assigned(2, "w2"), succeeded(2, "w2")], "nobody holds"),
        ([SUBMITTED, assigned(1, "w1"), succeeded(1, "w2")], "but w1 holds"),
        ([SUBMITTED, assigned(1, "w1"), LOST.model_copy(update={"retry_at": None})], "ended as failed"),
    ],
)
def test_each_broken_promise_is_found(events: list[Event], finding: str) -> None:
    assert any(finding in each for each in audit(history(*events), ENDS).findings)
