"""A real worker process on a real log, with the `echo` engine: each way that a task can go."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest

from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.streams import MODELS, QUEUE, TASKS, WORKERS
from bitinglip.events.task import TaskAssigned, TaskDeadLettered, TaskFailed, TaskSucceeded
from bitinglip.events.worker import WorkerModelLoaded
from bitinglip.gateway.openqueues import OpenQueues
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import CancelTask, Demand, Retry, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold, is_terminal
from tests.support.cluster import Cluster, Process, children_of

SHORT_LEASE = {"BITINGLIP_WORKER_LEASE_S": "1"}


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


def echo(**params: Any) -> SubmitTask:
    return SubmitTask.model_validate(
        {"kind": "echo", "model": "echo", "params": params, "retry": {"base_ms": 50, "max_ms": 100}}
    )


async def submit(inbox: Inbox, command: SubmitTask) -> TaskId:
    return (await inbox.submit(command)).task_id


async def until(log: EventLog, task_id: TaskId, kind: str) -> Recorded:
    async with asyncio.timeout(30), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            for recorded in batch:
                if recorded.type == kind:
                    return recorded
    raise AssertionError


async def outcome(log: EventLog, task_id: TaskId) -> list[Recorded]:
    """Wait for the task's end and return its history, in which only the last event is terminal."""
    async with asyncio.timeout(60), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            if any(is_terminal(recorded.event) for recorded in batch):
                break
    history = await log.read_task(task_id)
    assert [is_terminal(recorded.event) for recorded in history] == [False] * (len(history) - 1) + [True]
    return history


def attempt_of(recorded: Recorded) -> int | None:
    return getattr(recorded.event, "attempt", None)


def types(history: list[Recorded]) -> list[str]:
    return [recorded.type.removeprefix("task.") for recorded in history]


async def test_a_task_is_answered(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker()
    task_id = await submit(inbox, echo(message={"a": [1, None, "ü"]}))
    history = await outcome(log, task_id)
    assert types(history) == ["submitted", "assigned", "succeeded"]
    assigned, succeeded = history[1].event, history[2].event
    assert isinstance(assigned, TaskAssigned)
    assert isinstance(succeeded, TaskSucceeded)
    assert (assigned.attempt, assigned.worker_id, assigned.node_id) == (1, worker.ready["worker_id"], "test")
    assert succeeded.result == {"message": {"a": [1, None, "ü"]}}
    assert history[1].causation == history[0].id


async def test_work_from_before_the_worker_came_is_done(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    ids = [await submit(inbox, echo(message=n)) for n in range(30)]
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=8)
    results = [(await outcome(log, task_id))[-1].event for task_id in ids]
    assert [getattr(event, "result", None) for event in results] == [{"message": n} for n in range(30)]


async def test_work_that_requires_something_goes_where_it_is(
    nats_url: str, log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    """Before its worker is there, while it waits, and beside another worker that may not take it."""

    async def ask(label: str) -> TaskId:
        command = echo().model_copy(update={"requires": Demand.model_validate({"label": label})})
        event = await inbox.prepare(command)
        await OpenQueues(log.connection, 30, 100).ensure(event)
        return (await inbox.append(event)).task_id

    first, never = await ask("eu"), await ask("moon")
    await cluster.worker()
    eu = await cluster.worker(BITINGLIP_WORKER_LABELS="eu,fast")
    second = await ask("fast")
    for task_id in (first, second):
        assigned = (await outcome(log, task_id))[1].event
        assert isinstance(assigned, TaskAssigned)
        assert assigned.worker_id == eu.ready["worker_id"]
    assert types(await log.read_task(never)) == ["submitted"]
    await cluster.worker(BITINGLIP_WORKER_LABELS="moon")
    assert types(await outcome(log, never)) == ["submitted", "assigned", "succeeded"]


async def test_keys_share_a_worker_fairly(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    """A key with few tasks does not wait behind all those of a key with many."""
    queues = OpenQueues(log.connection, 30, 100)

    async def ask(key: str) -> TaskId:
        event = await inbox.prepare(echo(), key_id=key)
        await queues.ensure(event)
        return (await inbox.append(event)).task_id

    many = [await ask("many") for _ in range(120)]
    few = [await ask("few") for _ in range(10)]
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=2)
    ends = {task_id: (await outcome(log, task_id))[-1].sequence for task_id in [*many, *few]}
    before = sum(ends[task_id] < max(ends[other] for other in few) for task_id in many)
    assert before <= 30


async def test_a_worker_that_is_stopped_as_it_begins_a_task_ends(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    task_id = await submit(inbox, echo(steps=100_000, step_ms=20))
    for attempt in range(1, 6):
        worker = await cluster.worker(BITINGLIP_WORKER_GRACE_S="0")
        async with asyncio.timeout(30), aclosing(log.follow_task(task_id)) as batches:
            async for batch in batches:
                if any(attempt_of(seen) == attempt and seen.type == "task.assigned" for seen in batch):
                    break
        assert await worker.stop() == 0
    handed_back = [seen for seen in await log.read_task(task_id) if seen.type == "task.failed"]
    assert len(handed_back) == 5
    await inbox.cancel(task_id, CancelTask())


async def test_the_queue_is_empty_afterwards(log: EventLog, inbox: Inbox, cluster: Cluster, eventually: Any) -> None:
    await cluster.worker()
    for task_id in [await submit(inbox, echo()) for _ in range(20)]:
        await outcome(log, task_id)

    async def empty() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == 0

    await eventually(empty)


async def test_progress_is_told(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    history = await outcome(log, await submit(inbox, echo(steps=20, step_ms=20)))
    steps: list[Any] = [
        getattr(recorded.event, "step", None) for recorded in history if recorded.type == "task.progressed"
    ]
    assert steps == sorted(set(steps))
    assert 2 <= len(steps) <= 20


async def test_big_inputs_and_results_travel_as_artifacts(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    history = await outcome(log, await submit(inbox, echo(message="x" * 200_000)))
    succeeded = history[-1].event
    assert isinstance(succeeded, TaskSucceeded)
    assert succeeded.result is None
    assert succeeded.result_ref is not None
    assert succeeded.result_ref.size_bytes > 200_000


async def test_bad_input_is_not_tried_again(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    assert types(await outcome(log, await submit(inbox, echo(fail="bad_input")))) == ["submitted", "assigned", "failed"]


async def test_a_poison_task_is_dead_lettered_and_its_neighbours_live(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    await cluster.worker()
    poison = await submit(inbox, echo(fail="crash"))
    others = [await submit(inbox, echo(message=n)) for n in range(10)]
    history = await outcome(log, poison)
    assert types(history)[-1] == "dead_lettered"
    assert types(history).count("assigned") == 3
    for task_id in others:
        assert types(await outcome(log, task_id))[-1] == "succeeded"
    exits = await log.read_last(WORKERS, "bl.worker.*.engine_exited")
    assert exits is not None


async def test_poison_tasks_take_no_neighbour_s_last_attempt(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    twice = {"retry": Retry(max_attempts=2, base_ms=50, max_ms=100)}
    poison = [await submit(inbox, echo(fail="crash").model_copy(update=twice)) for _ in range(3)]
    others = [await submit(inbox, echo(message=n).model_copy(update=twice)) for n in range(60)]
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=256)
    histories = [await outcome(log, task_id) for task_id in poison + others]
    assert [types(history)[-1] for history in histories] == ["dead_lettered"] * 3 + ["succeeded"] * 60
    assigned = [recorded.event for history in histories for recorded in history]
    sizes = {event.batch_size for event in assigned if isinstance(event, TaskAssigned) and event.attempt == 2}
    assert sizes == {1}


async def test_one_that_waits_to_run_alone_is_handed_back_by_a_worker_that_stops(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    twice = {"retry": Retry(max_attempts=2, base_ms=50, max_ms=100)}
    poison = await submit(inbox, echo(fail="crash").model_copy(update=twice))
    slow = [await submit(inbox, echo(steps=10, step_ms=50).model_copy(update=twice)) for _ in range(12)]
    worker = await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=256)
    await until(log, poison, "task.dead_lettered")
    assert await worker.stop() == 0
    assert [is_terminal((await log.read_task(task_id))[-1].event) for task_id in slow].count(False) > 5
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=256)
    for task_id in slow:
        history = await outcome(log, task_id)
        assert types(history)[-1] == "succeeded"
        assert attempt_of(history[-1]) == 2


async def test_out_of_memory_is_tried_again(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    history = await outcome(log, await submit(inbox, echo(fail="out_of_memory")))
    assert types(history) == [
        "submitted", "assigned", "failed", "queued", "assigned", "failed", "queued", "assigned", "dead_lettered",
    ]  # fmt: skip


async def test_a_running_task_is_cancelled(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    task_id = await submit(inbox, echo(steps=10_000, step_ms=20))
    await until(log, task_id, "task.progressed")
    await inbox.cancel(task_id, CancelTask(by="me", reason="enough"))
    cancelled = (await outcome(log, task_id))[-1].event
    assert (cancelled.type, getattr(cancelled, "by", None)) == ("task.cancelled", "me")
    assert types(await outcome(log, await submit(inbox, echo())))[-1] == "succeeded"


async def test_an_attempt_that_runs_too_long_is_stopped(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker()
    command = SubmitTask.model_validate(
        {
            "kind": "echo",
            "model": "echo",
            "params": {"steps": 10_000, "step_ms": 20},
            "timeout_s": 0.3,
            "retry": {"max_attempts": 1},
        }
    )
    last = (await outcome(log, await submit(inbox, command)))[-1].event
    assert last.type == "task.dead_lettered"
    assert getattr(last, "failure").kind == "timed_out"  # noqa: B009


async def test_a_task_that_comes_too_late_expires(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    command = echo().model_copy(update={"expires_at": log.clock()})
    task_id = await submit(inbox, command)
    await cluster.worker()
    assert types(await outcome(log, task_id)) == ["submitted", "expired"]


def batch_sizes(history: list[Recorded]) -> list[int]:
    return [recorded.event.batch_size for recorded in history if isinstance(recorded.event, TaskAssigned)]


async def test_a_busy_worker_waits_a_moment_for_company(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    first = [await submit(inbox, echo()) for _ in range(2)]
    await cluster.worker(BITINGLIP_WORKER_GATHER_MS=1000)
    assert [batch_sizes(await outcome(log, task_id)) for task_id in first] == [[2], [2]]
    second = [await submit(inbox, echo()) for _ in range(2)]
    assert [batch_sizes(await outcome(log, task_id)) for task_id in second] == [[2], [2]]


async def test_a_worker_that_ran_a_task_alone_waits_for_nobody(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker(BITINGLIP_WORKER_GATHER_MS=1000)
    for _ in range(5):
        history = await outcome(log, await submit(inbox, echo()))
        assert history[-1].time - history[0].time < timedelta(seconds=0.9)


async def test_a_killed_engine_process_is_replaced(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker()
    task_id = await submit(inbox, echo(steps=40, step_ms=20))
    await until(log, task_id, "task.progressed")
    (engine,) = children_of(worker.pid)
    os.kill(engine, signal.SIGKILL)
    history = await outcome(log, task_id)
    failure = next(recorded.event for recorded in history if isinstance(recorded.event, TaskFailed))
    assert failure.failure.kind == "engine_crashed"
    assert "signal 9" in failure.failure.message
    assert types(history)[-1] == "succeeded"


async def test_a_hung_engine_process_is_replaced(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker(BITINGLIP_WORKER_STEP_TIMEOUT_S=0.5)
    hung = await submit(inbox, echo(steps=1, step_ms=60_000).model_copy(update={"retry": Retry(max_attempts=1)}))
    last = (await outcome(log, hung))[-1].event
    assert isinstance(last, TaskDeadLettered)
    assert last.failure.kind == "engine_crashed"
    assert "no step within 0.5 s" in last.failure.message
    assert types(await outcome(log, await submit(inbox, echo(message=1))))[-1] == "succeeded"


async def test_silence_between_tasks_is_no_hang(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker(BITINGLIP_WORKER_STEP_TIMEOUT_S=0.5)
    long = await submit(inbox, echo(steps=100, step_ms=20))
    assert types(await outcome(log, long)).count("assigned") == 1


async def test_a_fault_of_the_device_ends_the_process_and_the_next_task_runs(
    log: EventLog, inbox: Inbox, cluster: Cluster, eventually: Any
) -> None:
    worker = await cluster.worker()
    await outcome(log, await submit(inbox, echo()))
    (before,) = children_of(worker.pid)
    faulty = await submit(inbox, echo(fail="device_fault").model_copy(update={"retry": Retry(max_attempts=1)}))
    last = (await outcome(log, faulty))[-1].event
    assert isinstance(last, TaskDeadLettered)
    assert (last.failure.kind, "CUDA error" in last.failure.message) == ("engine_crashed", True)
    assert types(await outcome(log, await submit(inbox, echo(message=1))))[-1] == "succeeded"
    assert before not in children_of(worker.pid)


async def test_a_load_is_a_fact_with_what_it_takes(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker()
    await outcome(log, await submit(inbox, echo()))
    loaded = await log.read_last(WORKERS, f"bl.worker.{worker.ready['worker_id']}.model_loaded")
    assert loaded is not None
    assert isinstance(loaded.event, WorkerModelLoaded)
    assert (loaded.event.reference, loaded.event.device, loaded.event.memory_bytes) == ("echo", "cpu", 0)


async def test_a_killed_workers_task_is_taken_over_by_another_one(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    first = await cluster.worker(**SHORT_LEASE)
    task_id = await submit(inbox, echo(steps=60, step_ms=20))
    await until(log, task_id, "task.progressed")
    await first.kill()
    await cluster.worker(**SHORT_LEASE)
    history = await outcome(log, task_id)
    lost = next(recorded.event for recorded in history if isinstance(recorded.event, TaskFailed))
    assert (lost.failure.kind, lost.worker_id) == ("lost_lease", first.ready["worker_id"])
    assert types(history)[-1] == "succeeded"


async def test_a_paused_worker_cannot_write_into_the_next_attempt(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    paused = await cluster.worker(**SHORT_LEASE)
    task_id = await submit(inbox, echo(steps=60, step_ms=20))
    await until(log, task_id, "task.progressed")
    paused.signal(signal.SIGSTOP)
    await cluster.worker(**SHORT_LEASE)
    await until(log, task_id, "task.failed")
    paused.signal(signal.SIGCONT)
    history = await outcome(log, task_id)
    lost = types(history).index("failed")
    source = f"/worker/{paused.ready['worker_id']}"
    assert not [recorded for recorded in history[lost:] if recorded.source == source and attempt_of(recorded) == 1]
    assert types(history)[-1] == "succeeded"
    assert types(await outcome(log, await submit(inbox, echo())))[-1] == "succeeded"


async def test_a_long_task_keeps_its_lease(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    await cluster.worker(**SHORT_LEASE)
    await cluster.worker(**SHORT_LEASE)
    history = await outcome(log, await submit(inbox, echo(steps=150, step_ms=20)))
    assert types(history).count("assigned") == 1


async def test_a_stopped_worker_finishes_what_it_runs(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker()
    task_id = await submit(inbox, echo(steps=30, step_ms=20))
    await until(log, task_id, "task.progressed")
    assert await worker.stop() == 0
    history = await log.read_task(task_id)
    assert types(history)[-1] == "succeeded"
    goodbye = await log.read_last(WORKERS, "bl.worker.*.stopped")
    assert goodbye is not None


async def test_a_worker_whose_grace_is_over_hands_back(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker(BITINGLIP_WORKER_GRACE_S=0.2)
    task_id = await submit(inbox, echo(steps=100, step_ms=20))
    await until(log, task_id, "task.progressed")
    assert await worker.stop() == 0
    failed = (await log.read_task(task_id))[-1].event
    assert isinstance(failed, TaskFailed)
    assert failed.failure.kind == "worker_stopped"
    await cluster.worker()
    history = await outcome(log, task_id)
    assert types(history)[-1] == "succeeded"
    task = fold(history)
    assert task is not None
    assert (task.attempt, task.failures) == (2, 0)


async def test_a_second_signal_does_not_wait(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    worker = await cluster.worker(BITINGLIP_WORKER_GRACE_S=600)
    task_id = await submit(inbox, echo(steps=10_000, step_ms=20))
    await until(log, task_id, "task.progressed")
    worker.signal(signal.SIGINT)  # two of one kind might arrive as one
    assert await worker.stop() == 0
    failed = (await log.read_task(task_id))[-1].event
    assert isinstance(failed, TaskFailed)
    assert failed.failure.kind == "worker_stopped"


async def test_an_urgent_task_overtakes(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    slow = [await submit(inbox, echo(steps=2, step_ms=20)) for _ in range(40)]
    urgent = await submit(inbox, echo().model_copy(update={"lane": "interactive"}))
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=1)
    done = (await outcome(log, urgent))[-1].sequence
    last = (await outcome(log, slow[-1]))[-1].sequence
    first = (await outcome(log, slow[5]))[-1].sequence
    assert done < first < last


async def test_a_worker_tells_what_it_is_and_serves(log: EventLog, cluster: Cluster) -> None:
    worker = await cluster.worker()
    started = await log.read_last(WORKERS, f"bl.worker.{worker.ready['worker_id']}.started")
    model = await log.read_last(MODELS, "bl.model.echo.registered")
    assert started is not None
    assert model is not None
    assert getattr(started.event, "pid") == worker.pid  # noqa: B009
    await cluster.worker()
    assert await log.last_sequence(MODELS) == 1, "the same model is registered once"


async def test_a_worker_without_its_model_says_so(cluster: Cluster, tmp_path: Any) -> None:
    process = Process(
        "worker",
        {
            "BITINGLIP_NATS_URL": cluster.nats_url,
            "BITINGLIP_WORKER_MODELS": "no/such",
            "BITINGLIP_DATA_DIR": str(tmp_path),
        },
        tmp_path / "w.log",
    )
    await process.start(wait=False)
    assert await process.wait() == 2
    assert "no/such is not" in process.log.replace("'", "")
    assert "remedy:" in process.log


async def test_nothing_is_doubled_by_many_workers(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    for _ in range(3):
        await cluster.worker(BITINGLIP_WORKER_MAX_BATCH=4)
    ids = await asyncio.gather(*[submit(inbox, echo(message=n)) for n in range(200)])
    for task_id in ids:
        assert types(await outcome(log, task_id)) == ["submitted", "assigned", "succeeded"]
    assert await log.last_sequence(TASKS) == 600


async def test_a_cancel_that_comes_while_a_batch_is_assigned_or_prepared_is_heard(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    """As soon as a task's assignment is in the log somebody cancels it; others of its batch are just being written."""
    cancelling: set[asyncio.Task[Any]] = set()

    async def cancel(message: Any) -> None:
        task_id = TaskId(message.subject.split(".")[3])
        cancelling.add(asyncio.create_task(inbox.cancel(task_id, CancelTask(by="test"))))

    heard = await log.connection.subscribe("bl.live.task.*.assigned", cancel)
    await cluster.worker(BITINGLIP_WORKER_MAX_BATCH="64")
    for _ in range(5):
        tasks = await asyncio.gather(*[submit(inbox, echo(steps=1000, step_ms=20)) for _ in range(64)])
        for task_id in tasks:
            assert types(await outcome(log, task_id))[-1] == "cancelled"
    await asyncio.gather(*cancelling)
    await log.connection.unsubscribe(heard)
