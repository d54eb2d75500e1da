"""A realistic log of tasks: many in flight at a time, a few that fail and are tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from bitinglip.events.envelope import RawMessage, encode
from bitinglip.events.subjects import TaskSubject, encode_token
from bitinglip.events.task import (
    Failure,
    RetryPolicy,
    TaskAssigned,
    TaskEvent,
    TaskFailed,
    TaskProgressed,
    TaskQueued,
    TaskSubmitted,
    TaskSucceeded,
    Usage,
)
from bitinglip.ids import TaskId, Ulids

START = datetime(2026, 1, 1, tzinfo=UTC)
IN_FLIGHT = 2_000
CRASH = Failure(kind="engine_crashed", message="killed by signal 9", retryable=True)


def history(events: int, seed: int = 1) -> Iterator[RawMessage]:
    """Yield so many events of one stream, the same for the same seed."""
    chance = random.Random(seed)
    ids = Ulids(clock=lambda: START.timestamp(), random=lambda: chance.getrandbits(80))
    living = [_task(ids, chance) for _ in range(IN_FLIGHT)]
    for sequence in range(1, events + 1):
        event, routed = _next(living, ids, chance)
        yield _message(event, sequence, routed, ids())


def _next(living: list[Iterator[TaskEvent]], ids: Ulids, chance: random.Random) -> tuple[TaskEvent, bool]:
    while True:
        index = chance.randrange(len(living))
        event = next(living[index], None)
        if event is not None:
            return event, isinstance(event, TaskSubmitted | TaskQueued)
        living[index] = _task(ids, chance)


def _task(ids: Ulids, chance: random.Random) -> Iterator[TaskEvent]:
    task_id = TaskId(ids())
    yield _submitted(task_id, chance)
    for attempt in range(1, 4):
        yield _assigned(task_id, attempt)
        for step in range(chance.randrange(6)):
            yield TaskProgressed.model_construct(
                task_id=task_id, attempt=attempt, step=step * 10, total=64, unit="token", text=" and then the fox ran"
            )
        if chance.random() > 0.05 or attempt == 3:
            yield _succeeded(task_id, attempt)
            return
        yield TaskFailed.model_construct(
            task_id=task_id, attempt=attempt, worker_id="rig-1-0", failure=CRASH, retry_at=START, run_ms=3.0
        )
        yield TaskQueued.model_construct(task_id=task_id, attempt=attempt + 1, reason="retry")


def _submitted(task_id: TaskId, chance: random.Random) -> TaskSubmitted:
    return TaskSubmitted.model_construct(
        task_id=task_id,
        kind="text-generation",
        model=f"org/model-{chance.randrange(8)}",
        lane="normal",
        params={"prompt": "Once upon a time " * 3, "max_tokens": 64},
        request_sha256=f"{chance.getrandbits(256):064x}",
        metadata={"team": f"t{chance.randrange(20)}"},
        retry=RetryPolicy(),
    )


def _assigned(task_id: TaskId, attempt: int) -> TaskAssigned:
    return TaskAssigned.model_construct(
        task_id=task_id,
        attempt=attempt,
        worker_id="rig-1-0",
        node_id="rig-1",
        device="cuda:0",
        revision="607a30d783dfa663caf39e06633721c8d4cfcd7e",
        wait_ms=12,
        batch_size=4,
    )


def _succeeded(task_id: TaskId, attempt: int) -> TaskSucceeded:
    return TaskSucceeded.model_construct(
        task_id=task_id,
        attempt=attempt,
        worker_id="rig-1-0",
        result={"text": "upon a time there was a fox that jumped over a dog " * 3, "finish_reason": "stop"},
        usage=Usage(input_tokens=12, output_tokens=64),
        run_ms=41.5,
        versions={"torch": "2.10.0", "transformers": "5.0.0"},
    )


def _message(event: TaskEvent, sequence: int, routed: bool, event_id: str) -> RawMessage:
    time = START + timedelta(milliseconds=sequence)
    route = ("normal", encode_token("org/model")) if routed else ()
    subject = str(TaskSubject(event.task_id, event.type.removeprefix("task."), *route))
    payload = encode(event, id=event_id, source="/worker/rig-1-0", time=time, about=event.task_id)
    return RawMessage(sequence, int(time.timestamp() * 1_000_000_000), subject, payload)
