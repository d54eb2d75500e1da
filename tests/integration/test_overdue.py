"""What is due and nobody has told: the read model knows of it, and it is done by the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from bitinglip.errors import NoServer
from bitinglip.events.direct import get_last
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import QUEUE, TASKS, WORKERS
from bitinglip.events.subjects import encode_queue, work_of, worker_subject
from bitinglip.events.task import TaskAssigned, TaskFailed, TaskQueued
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.gateway.overdue import OverdueWork
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Projections
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.scheduler import Scheduler
from bitinglip.tasks.schedules import CreateSchedule
from bitinglip.tasks.stranded import StrandedWork
from tests.integration.test_graphs import after, succeed
from tests.integration.test_inbox import assign
from tests.integration.test_stranded import ROUTE, take, tasks_of
from tests.integration.test_times import echo, later, queue, types
from tests.support.server import eventually

AT_ONCE = timedelta(0)
LEASE_S = 30.0


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=1024)


@pytest.fixture
async def readmodel(log: EventLog, tmp_path: Path) -> AsyncIterator[ReadModel]:
    readmodel = await ReadModel.open(Projections(), tmp_path / "overdue.duckdb", log)
    await readmodel.wait_ready()
    yield readmodel
    await readmodel.close()


@pytest.fixture
def overdue(log: EventLog, inbox: Inbox, readmodel: ReadModel) -> OverdueWork:
    """Neither reactor nor scheduler has begun: nobody hears of what is due."""
    return OverdueWork(log, readmodel, Reactor(log, inbox), Scheduler(log, inbox), StrandedWork(log, inbox))


async def found(overdue: OverdueWork, *task_ids: TaskId) -> None:
    seen: set[str] = set()

    async def all_of_them() -> bool:
        seen.update(await overdue.look(AT_ONCE))
        return seen >= set(task_ids)

    await eventually(all_of_them)
    assert seen == set(task_ids)


async def test_a_start_without_a_timer_comes_all_the_same(log: EventLog, inbox: Inbox, overdue: OverdueWork) -> None:
    due, not_yet = await inbox.submit(echo(delay_s=0.2)), await inbox.submit(echo(delay_s=60))
    await found(overdue, due.task_id)
    last = (await log.read_task(due.task_id))[-1].event
    assert isinstance(last, TaskQueued)
    assert (last.attempt, last.reason) == (1, "scheduled")
    await eventually(partial(queue, log))
    assert await types(log, not_yet.task_id) == ["submitted"]


async def test_an_expiry_that_nobody_heard_of_comes_all_the_same(
    log: EventLog, inbox: Inbox, overdue: OverdueWork
) -> None:
    due = await inbox.submit(echo(expires_at=later(log, 0.3)))
    not_yet = await inbox.submit(echo(expires_at=later(log, 60)))
    await found(overdue, due.task_id)
    assert await types(log, due.task_id) == ["submitted", "expired"]
    assert await types(log, not_yet.task_id) == ["submitted"]


async def test_a_task_whose_others_have_ended_is_released_all_the_same(
    log: EventLog, inbox: Inbox, overdue: OverdueWork
) -> None:
    one, another = [(await inbox.submit(echo())).task_id for _ in range(2)]
    waiting = (await inbox.submit(after(one, another))).task_id
    await succeed(log, one)
    assert await overdue.look(AT_ONCE) == []
    await succeed(log, another)
    await found(overdue, waiting)
    assert await types(log, waiting) == ["submitted", "queued"]
    assert await overdue.look(AT_ONCE) == []


async def test_a_retry_without_a_timer_comes_unless_its_message_is_in_the_queue(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork
) -> None:
    task_id = (await inbox.submit(echo())).task_id
    await eventually(partial(queue, log))
    sequence = await assign(log, task_id, (await log.read_task(task_id))[-1].sequence)
    told = {"task_id": task_id, "attempt": 1, "retry_at": log.clock()}
    failed = TaskFailed.model_validate(TaskFailed.example | told)
    await readmodel.wait(TASKS, await log.append(log.task_append(failed, sequence)))
    assert await overdue.look(AT_ONCE) == []
    await log.purge_queued("normal", encode_queue("echo"), task_id)
    await found(overdue, task_id)
    last = (await log.read_task(task_id))[-1].event
    assert isinstance(last, TaskQueued)
    assert (last.attempt, last.reason) == (2, "retry")


async def test_a_queued_task_that_no_queue_has_gets_another_message(
    log: EventLog, inbox: Inbox, overdue: OverdueWork
) -> None:
    lost, there = [(await inbox.submit(echo())).task_id for _ in range(2)]
    await eventually(partial(queue, log))
    await log.purge_queued("normal", encode_queue("echo"), lost)
    await found(overdue, lost)
    last = (await log.read_task(lost))[-1].event
    assert isinstance(last, TaskQueued)
    assert last.reason == "stranded"
    assert await types(log, there) == ["submitted"]
    await eventually(partial(has_work, log, lost))
    assert await overdue.look(AT_ONCE) == []


async def test_a_task_that_runs_and_that_no_queue_has_goes_on_elsewhere_once_its_worker_is_gone(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork
) -> None:
    lost, held = [(await inbox.submit(echo())).task_id for _ in range(2)]
    await eventually(partial(queue, log))
    last = 0
    for task_id in (lost, held):
        last = await assign(log, task_id, (await log.read_task(task_id))[-1].sequence)
    await readmodel.wait(TASKS, last)
    await log.purge_queued("normal", encode_queue("echo"), lost)
    assert await overdue.look(AT_ONCE) == []  # somebody may be at it
    worker_id = TaskAssigned.example["worker_id"]
    stopped = WorkerStopped(worker_id=worker_id, node_id="n", reason="error")
    await log.append(log.fact_append(stopped, worker_subject(worker_id, "stopped"), worker_id))
    await found(overdue, lost)
    assert await types(log, held) == ["submitted", "assigned"]  # its message goes to another worker, who sees to it
    assert (await types(log, lost))[:3] == ["submitted", "assigned", "failed"]
    await eventually(partial(has_work, log, lost))


async def test_work_that_was_handed_out_and_comes_to_nothing_is_the_next_to_be_handed_out(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was given it may have died, and the server not hand it out for minutes."""
    taken, failed, before, waiting = [(await inbox.submit(echo())).task_id for _ in range(4)]
    dead, alive = [WorkQueue(log.connection, LEASE_S) for _ in range(2)]
    await dead.ensure([ROUTE])
    assert tasks_of(await take(dead, 2, eventually)) == [taken, failed]
    await fail(log, readmodel, failed)
    in_time(log, monkeypatch, 1.8 * LEASE_S)
    assert await overdue.look(AT_ONCE) == []
    assert tasks_of(await take(alive, 1, eventually)) == [before]
    in_time(log, monkeypatch, 2.2 * LEASE_S)
    assert await overdue.look(AT_ONCE) == []
    await handed_back(log)
    assert set(tasks_of(await take(alive, 3, eventually))) == {taken, failed, before}
    assert tasks_of(await take(alive, 1, eventually)) == [waiting]
    assert await types(log, taken) == ["submitted"]
    await dead.close()
    await alive.close()


async def test_work_that_is_the_next_to_be_handed_out_keeps_its_place_while_everybody_is_busy(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [(await inbox.submit(echo())).task_id for _ in range(2)]
    work = WorkQueue(log.connection, LEASE_S)
    await work.ensure([ROUTE])
    await (await take(work, 1, eventually))[0].nak()
    await read_by(log, readmodel)
    in_time(log, monkeypatch, 100 * LEASE_S)
    assert [await overdue.look(AT_ONCE) for _ in range(4)] == [[]] * 4
    await handed_back(log)
    assert tasks_of(await take(work, 2, eventually)) == [first, second]
    assert await types(log, first) == ["submitted"]
    await work.close()


async def test_work_that_others_are_handed_out_before_gets_another_message(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, failed, waiting, last = [(await inbox.submit(echo())).task_id for _ in range(4)]
    work = WorkQueue(log.connection, LEASE_S)
    await work.ensure([ROUTE])
    await take(work, 2, eventually)
    await fail(log, readmodel, failed)
    in_time(log, monkeypatch, 3 * LEASE_S)
    assert await overdue.look(AT_ONCE) == []
    await handed_back(log)
    await take(work, 2, eventually)  # who has them now says nothing of them either
    assert await overdue.look(AT_ONCE) == []
    assert tasks_of(await take(work, 1, eventually)) == [waiting]
    assert await overdue.look(AT_ONCE) == []
    in_time(log, monkeypatch, 4.5 * LEASE_S)
    await found(overdue, taken, failed)
    reasons = [(await log.read_task(task_id))[-1].event for task_id in (taken, failed)]
    assert [event.reason for event in reasons if isinstance(event, TaskQueued)] == ["stranded", "retry"]
    assert await overdue.look(AT_ONCE) == []  # the new messages wait
    assert set(tasks_of(await take(work, 4, eventually))) == {waiting, last, taken, failed}
    await work.close()


async def handed_back(log: EventLog) -> None:
    """Wait until the server has done what it was told of messages: it answers who asks, in turn."""
    await log.connection.client.request(f"$JS.ACK.{QUEUE}.{ROUTE.consumer}.1.1.1.0.0", b"+WPI")


async def fail(log: EventLog, readmodel: ReadModel, task_id: TaskId) -> None:
    """Have the task's first attempt fail; the next one may begin at once."""
    sequence = await assign(log, task_id, (await log.read_task(task_id))[-1].sequence)
    told = {"task_id": task_id, "attempt": 1, "retry_at": log.clock()}
    event = TaskFailed.model_validate(TaskFailed.example | told)
    await readmodel.wait(TASKS, await log.append(log.task_append(event, sequence)))


async def test_the_first_ones_of_each_queue_are_rather_looked_at(
    log: EventLog, inbox: Inbox, readmodel: ReadModel
) -> None:
    """What was handed out is before what was not."""
    long = [(await inbox.submit(echo())).task_id for _ in range(200)]
    short = (await inbox.submit(echo(model="other"))).task_id
    now = await read_by(log, readmodel)
    looked_at = await readmodel.queries.with_work(now, now, 20)
    assert len(looked_at) == 20
    assert {long[0], short} <= set(looked_at)


async def test_what_runs_is_looked_at_if_its_worker_may_be_gone(
    log: EventLog, inbox: Inbox, readmodel: ReadModel
) -> None:
    tasks: dict[str, TaskId] = {}

    async def say(worker_id: str, event: WorkerStarted | WorkerHeartbeat | WorkerStopped) -> None:
        told = event.model_copy(update={"worker_id": worker_id})
        await log.append(log.fact_append(told, worker_subject(worker_id, event.type.partition(".")[2]), worker_id))

    started = WorkerStarted.model_validate(WorkerStarted.example)
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
    stopped = WorkerStopped.model_validate(WorkerStopped.example)
    for worker_id in ("busy", "stopped", "anew", "idle", "unheard of"):
        tasks[worker_id] = (await inbox.submit(echo())).task_id
        if worker_id != "unheard of":
            await say(worker_id, started)
        assigned = TaskAssigned.example | {"task_id": tasks[worker_id], "worker_id": worker_id}
        after = (await log.read_task(tasks[worker_id]))[-1].sequence
        await log.append(log.task_append(TaskAssigned.model_validate(assigned), after))
    await say("stopped", stopped)
    await say("anew", started)
    await say("idle", beat.model_copy(update={"running": 0}))
    await say("busy", beat)
    now = await read_by(log, readmodel)
    gone = {"stopped", "anew", "idle", "unheard of"}
    assert set(await readmodel.queries.with_work(now, now - timedelta(seconds=20), 20)) == {tasks[one] for one in gone}
    assert set(await readmodel.queries.with_work(now, now, 20)) == set(tasks.values())  # all have been silent since


async def read_by(log: EventLog, readmodel: ReadModel) -> datetime:
    """Wait until the read model has what is in the log; returns the time then."""
    for stream in (TASKS, WORKERS):
        if (last := await log.read_last(stream, "bl.>")) is not None:
            await readmodel.wait(stream, last.sequence)
    return log.clock()


async def test_the_history_of_a_task_that_goes_on_is_not_read(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have thousands of ticks."""
    task_id = (await inbox.submit(echo())).task_id
    work = WorkQueue(log.connection, LEASE_S)
    await work.ensure([ROUTE])
    await take(work, 1, eventually)
    await readmodel.wait(TASKS, await assign(log, task_id, (await log.read_task(task_id))[-1].sequence))
    read, read_task = list[TaskId](), log.read_task

    async def told(task_id: TaskId, after: int = 0) -> list[Recorded]:
        read.append(task_id)
        return await read_task(task_id, after)

    monkeypatch.setattr(log, "read_task", told)
    assert await overdue.look(AT_ONCE) == []
    assert read == []
    in_time(log, monkeypatch, 3 * LEASE_S)
    assert await overdue.look(AT_ONCE) == []
    assert read == [task_id]
    await work.close()


def in_time(log: EventLog, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Have the log's clock tell a later time."""
    monkeypatch.setattr(log, "clock", lambda: datetime.now(UTC) + timedelta(seconds=seconds))


async def test_a_task_that_cannot_be_mended_now_holds_up_no_others(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = [(await inbox.submit(echo(delay_s=0.2))).task_id for _ in range(2)]

    class Hindered(Reactor):
        async def do_what_is_due(self, task_id: TaskId) -> bool:
            if task_id == first:
                raise NoServer(problem="not now")
            return await super().do_what_is_due(task_id)

    overdue = OverdueWork(log, readmodel, Hindered(log, inbox), Scheduler(log, inbox), StrandedWork(log, inbox))
    await found(overdue, second)
    assert f"task {second}: it had come to a stop" in caplog.text
    assert await types(log, first) == ["submitted"]


async def has_work(log: EventLog, task_id: TaskId) -> bool:
    return await get_last(log.connection, QUEUE, work_of(task_id)) is not None


async def test_what_is_a_little_late_is_left_to_its_timer(log: EventLog, inbox: Inbox, overdue: OverdueWork) -> None:
    accepted = await inbox.submit(echo(delay_s=0.2))
    await eventually(lambda: log.clock() > accepted.run_at if accepted.run_at else False)
    assert await overdue.look() == []
    assert await types(log, accepted.task_id) == ["submitted"]


async def test_a_schedule_whose_alarm_was_lost_fires_all_the_same(log: EventLog, inbox: Inbox) -> None:
    scheduler = Scheduler(log, inbox)
    task = {"kind": "echo", "model": "echo"}
    often, seldom = [await scheduler.create(CreateSchedule(every_s=s, task=task), None) for s in (1, 3600)]

    async def fired() -> bool:
        return await scheduler.fire_overdue(AT_ONCE) == [often.id]

    await eventually(fired)
    last = (await scheduler.read(often.id)).last
    assert last is not None
    assert (last.outcome, last.due_at) == ("submitted", often.created_at + timedelta(seconds=1))
    assert last.task_id is not None
    assert await types(log, TaskId(last.task_id)) == ["submitted"]
    assert (await scheduler.read(seldom.id)).last is None
