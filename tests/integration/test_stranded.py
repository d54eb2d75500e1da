"""Work that its consumer counts as done, and that is still in the queue."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from bitinglip.errors import NoServer
from bitinglip.events.direct import get_first_after
from bitinglip.events.envelope import Recorded, decode
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery, WorkQueue
from bitinglip.events.routes import known_routes
from bitinglip.events.stranded import Stray
from bitinglip.events.streams import QUEUE, TASKS, Route, consumer
from bitinglip.events.subjects import WorkClass, encode_queue, encode_token, work_of, worker_subject
from bitinglip.events.task import TaskCancelled, TaskEvent, TaskFailed, TaskQueued
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import AssignAttempt, FailAttempt, ProgressAttempt, RequeueTask, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import LOST_LEASE, State, Task, decide, evolve, fold
from bitinglip.tasks.stranded import StrandedWork
from bitinglip.workers.attempt import Scribe

ROUTE = Route("normal", encode_token("echo"))
WORKER = "w-0"


@pytest.fixture
async def forgetful(log: EventLog) -> None:
    """A consumer that hands each message out once, and then forgets it, acked or not."""
    declared = consumer(ROUTE, 0.2)
    declared.max_deliver = 1
    await log.connection.js.add_consumer(QUEUE, config=declared)


@pytest.fixture
async def stranded(log: EventLog) -> StrandedWork:
    return StrandedWork(log, Inbox(log, 65_536), silent_s=60)


async def submit(log: EventLog, count: int) -> list[TaskId]:
    inbox = Inbox(log, 65_536)
    return [(await inbox.submit(SubmitTask(kind="echo", model="echo"))).task_id for _ in range(count)]


async def hand_out(log: EventLog, count: int) -> list[TaskId]:
    """Submit tasks, and take them as a worker that says nothing more."""
    ids = await submit(log, count)
    subscription = await log.connection.js.pull_subscribe_bind(ROUTE.consumer, QUEUE)
    taken = 0
    while taken < count:
        taken += len(await subscription.fetch(count - taken, timeout=10))
    await subscription.unsubscribe()
    return ids


async def forgotten(log: EventLog) -> bool:
    info = await log.connection.js.consumer_info(QUEUE, ROUTE.consumer)
    return (info.num_pending, info.num_ack_pending) == (0, 0)


async def strand(log: EventLog, count: int, eventually: Any) -> list[TaskId]:
    """Submit tasks whose messages a consumer gave to nobody that is there; from then on it is an honest one."""
    ids = await hand_out(log, count)
    await eventually(lambda: forgotten(log))
    await log.connection.js.add_consumer(QUEUE, config=consumer(ROUTE, 30))
    return ids


async def assign(log: EventLog, task_id: TaskId) -> Task:
    """Let a worker take a task."""
    task = await read(log, task_id)
    command = AssignAttempt(
        ready_sequence=task.ready_sequence,
        worker_id=WORKER,
        node_id="n",
        device="cpu",
        revision=None,
        batch_size=1,
        now=log.clock(),
    )
    decided = decide(task, command)
    assert isinstance(decided, tuple)
    sequence = await log.append(log.task_append(decided[0], task.sequence))
    after = evolve(task, decided[0], sequence, log.clock())
    assert after is not None
    return after


async def read(log: EventLog, task_id: TaskId) -> Task:
    task = fold(await log.read_task(task_id))
    assert task is not None
    return task


async def states(log: EventLog, ids: list[TaskId]) -> set[State]:
    return {(await read(log, task_id)).state for task_id in ids}


async def take(queue: WorkQueue, count: int, eventually: Any) -> list[Delivery]:
    taken: list[Delivery] = []

    async def all_there() -> bool:
        taken.extend(await queue.pull(ROUTE, count))
        return len(taken) >= count

    await eventually(all_there)
    return taken


def tasks_of(deliveries: list[Delivery]) -> list[TaskId]:
    events = [delivery.event.event for delivery in deliveries]
    return [event.task_id for event in events if isinstance(event, TaskEvent)]


async def left_in_queue(log: EventLog) -> int:
    return (await log.connection.js.stream_info(QUEUE)).state.messages


async def test_stranded_work_is_handed_out_again(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    ids = await strand(log, 3, eventually)
    assert await stranded.look() == []  # once is chance
    assert await stranded.look() == ids
    queue = WorkQueue(log.connection, 30)
    found = await take(queue, 3, eventually)
    assert tasks_of(found) == ids
    assert all(isinstance(each.event.event, TaskQueued) for each in found)
    for _ in range(3):
        assert await stranded.look() == []
    assert await left_in_queue(log) == 3
    await queue.close()


async def test_it_is_mended_in_a_queue_that_is_never_quiet(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    (lost,) = await strand(log, 1, eventually)
    queue = WorkQueue(log.connection, 30)
    await submit(log, 1)
    (ended,) = await take(queue, 1, eventually)
    await ended.ack()
    await eventually(lambda: forgotten(log))
    (runs,) = await submit(log, 1)
    assert tasks_of(await take(queue, 1, eventually)) == [runs]
    assert await stranded.look() == []
    assert await stranded.look() == [lost]
    assert tasks_of(await take(queue, 1, eventually)) == [lost]  # and what runs is given to nobody else
    assert await queue.pull(ROUTE, 1) == []
    await queue.close()


async def test_two_gateways_mend_a_task_once(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    ids = await strand(log, 5, eventually)
    other = StrandedWork(log, Inbox(log, 65_536))
    for one in (stranded, other, stranded, other):
        await one.look()
    queue = WorkQueue(log.connection, 30)
    assert tasks_of(await take(queue, 5, eventually)) == ids
    assert await queue.pull(ROUTE, 5) == []
    assert [len(await log.read_task(task_id)) for task_id in ids] == [2] * 5
    await queue.close()


async def test_a_message_that_its_task_needs_no_more_is_taken_out(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    (task_id,) = await strand(log, 1, eventually)
    task = await assign(log, task_id)
    failed = TaskFailed.model_validate(TaskFailed.example | {"task_id": task_id, "attempt": 1, "worker_id": WORKER})
    await log.append(log.task_append(failed.model_copy(update={"retry_at": None}), task.sequence))
    await stranded.look()
    assert await stranded.look() == [task_id]
    assert (await states(log, [task_id]), await left_in_queue(log)) == ({"failed"}, 0)


async def test_one_that_has_outgrown_its_card_gets_the_queue_that_it_goes_to(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    (task_id,) = await strand(log, 1, eventually)
    task = await assign(log, task_id)
    full = {"kind": "out_of_memory", "message": "no room", "retryable": True}
    told = {"task_id": task_id, "attempt": 1, "worker_id": WORKER, "failure": full, "next_vram_gb": 9}
    await log.append(log.task_append(TaskFailed.model_validate(TaskFailed.example | told), task.sequence))
    await stranded.look()
    assert await stranded.look() == [task_id]
    bigger = Route("normal", encode_queue("echo", WorkClass(vram_gb=9)))
    assert set(await known_routes(log.connection)) == {ROUTE, bigger}
    queue = WorkQueue(log.connection, 30)
    (delivery,) = await queue.wait([bigger], 1)
    assert isinstance(delivery.event.event, TaskQueued)
    assert delivery.event.event.reason == "bigger_card"
    await queue.close()
    again = await Inbox(log, 65_536).settle(
        await read(log, task_id), RequeueTask(ready_sequence=delivery.event.sequence)
    )
    assert again.ready_sequence > delivery.event.sequence
    last = await log.read_last(TASKS, f"bl.task.{task_id}.queued.{bigger.lane}.{bigger.queue}")
    assert last is not None
    assert last.sequence == again.ready_sequence


async def test_a_task_that_runs_is_left_to_its_worker_until_that_is_gone(
    log: EventLog, forgetful: None, stranded: StrandedWork, eventually: Any
) -> None:
    (task_id,) = await strand(log, 1, eventually)
    started = WorkerStarted.model_validate(WorkerStarted.example | {"worker_id": WORKER})
    await log.append(log.fact_append(started, worker_subject(WORKER, "started"), WORKER))
    await assign(log, task_id)
    for _ in range(3):
        assert await stranded.look() == []
    assert await states(log, [task_id]) == {"running"}
    stopped = WorkerStopped(worker_id=WORKER, node_id="n", reason="error")
    await log.append(log.fact_append(stopped, worker_subject(WORKER, "stopped"), WORKER))
    assert await stranded.look() == [task_id]
    queue = WorkQueue(log.connection, 30)
    assert tasks_of(await take(queue, 1, eventually)) == [task_id]
    assert [each.event.type for each in await log.read_task(task_id)][1:] == [
        "task.assigned",
        "task.failed",
        "task.queued",
    ]
    await queue.close()


async def test_a_worker_that_says_nothing_for_long_is_gone(log: EventLog, forgetful: None, eventually: Any) -> None:
    (task_id,) = await strand(log, 1, eventually)
    await assign(log, task_id)
    stranded = StrandedWork(log, Inbox(log, 65_536), silent_s=0.2)

    async def mended() -> bool:
        return await stranded.look() == [task_id]

    await eventually(mended)
    assert (await read(log, task_id)).failures == 1


async def test_a_worker_that_runs_nothing_has_lost_what_it_had(
    log: EventLog, forgetful: None, stranded: StrandedWork, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    (task_id,) = await strand(log, 1, eventually)
    await assign(log, task_id)
    for running in (1, 0):
        for _ in range(3):
            assert await stranded.look() == []
        told = {"worker_id": WORKER, "running": running}
        beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example | told)
        await log.append(log.fact_append(beat, worker_subject(WORKER, "heartbeat"), WORKER))
    assert await stranded.look() == []  # it may have come to it since
    monkeypatch.setattr("bitinglip.tasks.stranded.BEGUN_WITHIN", timedelta(0))
    assert await stranded.look() == [task_id]
    assert (await read(log, task_id)).failures == 1


async def test_work_that_waits_or_runs_is_left_alone(log: EventLog, stranded: StrandedWork) -> None:
    queue = WorkQueue(log.connection, 10)
    await queue.ensure([ROUTE])
    await submit(log, 3)
    (running,) = await queue.wait([ROUTE], 1)
    for _ in range(3):
        assert await stranded.look() == []
    await running.nak()
    for _ in range(3):
        assert await stranded.look() == []
    await queue.close()


async def test_what_ended_tasks_left_in_a_queue_without_workers_is_taken_out(
    log: EventLog, stranded: StrandedWork, eventually: Any
) -> None:
    await log.connection.js.add_consumer(QUEUE, config=consumer(ROUTE, 30))
    ended, alive = await submit(log, 150), await submit(log, 2)

    async def messages() -> int:
        return (await log.connection.js.stream_info(QUEUE)).state.messages

    async def all_there() -> bool:
        return await messages() == 152

    await eventually(all_there)
    for task_id in ended:
        task = await read(log, task_id)
        cancelled = TaskCancelled.model_validate(TaskCancelled.example | {"task_id": task_id})
        await log.append(log.task_append(cancelled, task.sequence))  # and whoever did it is gone
    assert await stranded.look() == []  # the queue may move
    assert await stranded.look() == ended[:100]
    assert await stranded.look() == ended[100:]
    assert await stranded.look() == []
    assert await messages() == 2
    assert await states(log, alive) == {"queued"}


# --- copies of the log that are behind the queue, as one of three servers may have while it has no leader -------------


def be_behind(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log answer as a copy does that lacks each task's last event."""
    whole = log.read_task

    async def read_task(task_id: TaskId, after: int = 0) -> list[Recorded]:
        return (await whole(task_id, after))[:-1]

    monkeypatch.setattr(log, "read_task", read_task)


async def test_what_a_copy_does_not_know_yet_stays_in_the_queue(
    log: EventLog, forgetful: None, stranded: StrandedWork, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    (task_id,) = await strand(log, 1, eventually)
    await Inbox(log, 65_536).settle(await read(log, task_id), RequeueTask(ready_sequence=1))
    (first, second) = await find_all(log, task_id, eventually)
    with monkeypatch.context() as patch:
        be_behind(log, patch)
        assert not await stranded._mend(second)  # pyright: ignore[reportPrivateUsage]
    assert await stranded._mend(first)  # pyright: ignore[reportPrivateUsage]


async def find_all(log: EventLog, task_id: TaskId, eventually: Any) -> list[Stray]:
    """Return all of a task's work messages, whoever has them."""

    async def both() -> list[Stray]:
        found, after = list[Stray](), 0
        while (message := await get_first_after(log.connection, QUEUE, work_of(task_id), after)) is not None:
            after = message.sequence
            found.append(Stray(ROUTE, after, task_id, decode(message, TASKS).id))
        return found if len(found) == 2 else []

    return await eventually(both)


async def test_a_worker_leaves_to_its_lease_what_a_copy_does_not_know_yet(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    (task_id,) = await submit(log, 1)
    await Inbox(log, 65_536).settle(await read(log, task_id), RequeueTask(ready_sequence=1))
    queue = WorkQueue(log.connection, 30)
    await queue.ensure([ROUTE])
    _, second = await take(queue, 2, eventually)
    scribe = Scribe(log, 60, lambda: False)
    with monkeypatch.context() as patch:
        be_behind(log, patch)
        with pytest.raises(NoServer, match="behind its queue"):
            await scribe.open(second)
    attempt = await scribe.open(second)
    assert attempt is not None
    assert attempt.task.ready_sequence == second.event.sequence
    await queue.close()


async def test_work_of_which_the_log_cannot_tell_now_holds_up_no_other(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    await submit(log, 4)
    queue = WorkQueue(log.connection, 30)
    await queue.ensure([ROUTE])
    first, *others = [replace(each, delivered=2) for each in await take(queue, 4, eventually)]
    last = replace(others.pop(), delivered=1)
    scribe, read_task = Scribe(log, 60, lambda: False), log.read_task
    away = set(tasks_of([first]))

    async def partly(task_id: TaskId, after: int = 0) -> list[Recorded]:
        if task_id in away:
            raise NoServer(problem="not now")
        return await read_task(task_id, after)

    monkeypatch.setattr(log, "read_task", partly)
    opened = await scribe.open_all([first, *others, last])
    assert [attempt.delivery for attempt in opened] == [*others, last]
    assert await scribe.open_all([]) == []
    with pytest.raises(NoServer, match="not now"):
        await scribe.open_all([first])
    away |= set(tasks_of(others))
    assert [attempt.delivery for attempt in await scribe.open_all([first, *others, last])] == [last]
    with pytest.raises(NoServer, match="not now"):
        await scribe.open_all([first, *others])
    await queue.close()


async def test_an_attempt_outlives_the_tick_that_was_its_last_event(log: EventLog, eventually: Any) -> None:
    (task_id,) = await submit(log, 1)
    queue = WorkQueue(log.connection, 30)
    await queue.ensure([ROUTE])
    scribe = Scribe(log, 1, lambda: False)
    (attempt,) = await scribe.open_all(await take(queue, 1, eventually))
    attempt.task = await assign(log, task_id)
    tick = ProgressAttempt(attempt=1, worker_id=WORKER, step=1, total=2)
    assert await scribe.write([(attempt, tick)]) == [None]

    async def left() -> bool:
        return len(await log.read_task(task_id)) == 2

    await eventually(left)
    failed = FailAttempt(attempt=1, worker_id=WORKER, failure=LOST_LEASE, run_ms=1.0, now=log.clock(), jitter=0.0)
    assert await scribe.write([(attempt, failed)]) == [None]
    assert await states(log, [task_id]) == {"scheduled"}
    await queue.close()


async def test_a_worker_acks_work_for_no_task_only_once_it_has_come_again(
    log: EventLog, monkeypatch: pytest.MonkeyPatch, eventually: Any
) -> None:
    await submit(log, 1)
    queue = WorkQueue(log.connection, 30)
    await queue.ensure([ROUTE])
    (delivery,) = await take(queue, 1, eventually)
    scribe = Scribe(log, 60, lambda: False)
    with monkeypatch.context() as patch:
        be_behind(log, patch)
        with pytest.raises(NoServer, match="behind its queue"):
            await scribe.open(replace(delivery, delivered=2))
        assert await scribe.open(replace(delivery, delivered=3)) is None
    await eventually(lambda: is_empty(log))
    await queue.close()


async def is_empty(log: EventLog) -> bool:
    return (await log.connection.js.stream_info(QUEUE)).state.messages == 0
