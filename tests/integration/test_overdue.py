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
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.events.subjects import encode_queue, work_of, worker_subject
from bitinglip.events.task import TaskAssigned, TaskFailed, TaskQueued
from bitinglip.events.worker import WorkerStopped
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


async def test_work_that_was_handed_out_and_comes_to_nothing_is_handed_out_again(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was given it may have died, and the server not hand it out for minutes."""
    taken, failed, waiting = [(await inbox.submit(echo())).task_id for _ in range(3)]
    work = WorkQueue(log.connection, 30)
    await work.ensure([ROUTE])
    assert tasks_of(await take(work, 2, eventually)) == [taken, failed]
    sequence = await assign(log, failed, (await log.read_task(failed))[-1].sequence)
    told = {"task_id": failed, "attempt": 1, "retry_at": log.clock()}
    event = TaskFailed.model_validate(TaskFailed.example | told)
    await readmodel.wait(TASKS, await log.append(log.task_append(event, sequence)))
    assert await overdue.look(AT_ONCE) == []
    in_time(log, monkeypatch, 45)
    await found(overdue, taken, failed)
    reasons = [(await log.read_task(task_id))[-1].event for task_id in (taken, failed)]
    assert [event.reason for event in reasons if isinstance(event, TaskQueued)] == ["stranded", "retry"]
    assert await types(log, waiting) == ["submitted"]
    assert await overdue.look(AT_ONCE) == []  # the new messages wait
    assert set(tasks_of(await take(work, 3, eventually))) == {waiting, taken, failed}
    await found(overdue, waiting, failed)
    in_time(log, monkeypatch, 75)  # twice as long
    await found(overdue, taken)
    await work.close()


async def test_the_history_of_a_task_that_goes_on_is_not_read(
    log: EventLog, inbox: Inbox, readmodel: ReadModel, overdue: OverdueWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have thousands of ticks."""
    task_id = (await inbox.submit(echo())).task_id
    work = WorkQueue(log.connection, 30)
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
    in_time(log, monkeypatch, 45)
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
