"""Delayed starts and expiries on the real log: timers of the server, and the reactor that looks after them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest

from bitinglip.errors import IllegalTransition, InvalidInput
from bitinglip.events.clock import ServerClock
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.events.task import TaskQueued
from bitinglip.ids import TaskId, encode_ulid
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.routing import route_of
from tests.integration.test_inbox import assign
from tests.support.server import eventually


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=1024)


@pytest.fixture
async def reactor(log: EventLog, inbox: Inbox) -> AsyncIterator[Reactor]:
    reactor = Reactor(log, inbox)
    await reactor.start()
    yield reactor
    await reactor.close()


def echo(**fields: object) -> SubmitTask:
    return SubmitTask.model_validate({"kind": "echo", "model": "echo", "params": {}} | fields)


async def test_ids_are_of_the_time_that_events_tell(log: EventLog) -> None:
    assert isinstance(log.clock, ServerClock)
    before, between, after = log.clock(), log.clock.seconds(), log.clock()
    assert before.timestamp() - 1e-5 <= between <= after.timestamp() + 1e-5
    log.clock._base -= timedelta(days=1)  # pyright: ignore[reportPrivateUsage]  (as a server behind us would tell)
    assert between - 86_401 < log.clock.seconds() < between - 86_300
    assert log.ids() < encode_ulid(int((between - 86_000) * 1000) << 80)


async def types(log: EventLog, task_id: TaskId) -> list[str]:
    return [recorded.type.removeprefix("task.") for recorded in await log.read_task(task_id)]


async def queue(log: EventLog) -> int:
    return (await log.connection.js.stream_info(QUEUE)).state.messages


async def on(log: EventLog, subject: str) -> dict[str, int]:
    """Return the subjects in TASKS that match, with how many messages each has."""
    return (await log.connection.js.stream_info(TASKS, subjects_filter=subject)).state.subjects or {}


async def happened(log: EventLog, task_id: TaskId, *expected: str) -> None:
    async def as_expected() -> bool:
        return await types(log, task_id) == list(expected)

    await eventually(as_expected)


async def timer_is_set(log: EventLog, task_id: TaskId) -> None:
    await eventually(lambda: on(log, f"bl.timer.{task_id}.1"))


def later(log: EventLog, seconds: float) -> datetime:
    return log.clock() + timedelta(seconds=seconds)


async def test_a_delayed_task_is_queued_when_its_time_comes_and_not_before(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    accepted = await inbox.submit(echo(delay_s=0.4))
    assert accepted.run_at is not None
    await timer_is_set(log, accepted.task_id)
    assert await queue(log) == 0
    await happened(log, accepted.task_id, "submitted", "queued")
    last = await log.read_last(TASKS, f"bl.task.{accepted.task_id}.>")
    assert last is not None
    assert last.recorded_at >= accepted.run_at
    assert isinstance(last.event, TaskQueued)
    assert (last.event.attempt, last.event.reason) == (1, "scheduled")
    await eventually(lambda: queue(log))


async def test_a_start_in_the_past_is_now(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(echo(run_at=later(log, -5)))
    assert accepted.run_at is None
    await eventually(lambda: queue(log))


async def test_a_start_is_bounded(log: EventLog, inbox: Inbox) -> None:
    with pytest.raises(InvalidInput, match="run_at"):
        await inbox.submit(echo(run_at=later(log, 400 * 86_400)))
    with pytest.raises(InvalidInput, match="expires_at"):
        await inbox.submit(echo(delay_s=60, expires_at=later(log, 30)))
    assert await on(log, "bl.>") == {}


async def test_a_task_whose_gateway_died_before_its_timer_was_set_is_queued_all_the_same(
    log: EventLog, inbox: Inbox
) -> None:
    """There is no reactor yet: `submitted` is all that the one that died has left."""
    accepted = await inbox.submit(echo(delay_s=0.2))
    assert await on(log, "bl.timer.>") == {}
    another = Reactor(log, inbox)
    await another.start()
    await happened(log, accepted.task_id, "submitted", "queued")
    await another.close()


async def test_a_submission_that_who_answers_for_the_log_lacks_is_reacted_to_again(
    log: EventLog, inbox: Inbox, reactor: Reactor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that leads no more, and does not know it yet, lacks what was just accepted."""
    whole, answers = log.read_task, [list[Recorded]()]

    async def read_task(task_id: TaskId, after: int = 0) -> list[Recorded]:
        return answers.pop() if answers else await whole(task_id, after)

    monkeypatch.setattr(log, "read_task", read_task)
    accepted = await inbox.submit(echo(delay_s=0.2))
    await eventually(lambda: not answers)
    await happened(log, accepted.task_id, "submitted", "queued")


async def test_a_delivery_that_comes_twice_sets_no_timer_for_what_has_begun(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(echo(delay_s=0))
    await assign(log, accepted.task_id, accepted.sequence)
    reactor = Reactor(log, inbox)
    await reactor._react(f"bl.task.{accepted.task_id}.submitted", b"")  # pyright: ignore[reportPrivateUsage]
    assert await on(log, "bl.timer.>") == {}
    await reactor.close()


async def test_a_scheduled_task_is_cancelled_and_its_timer_withdrawn(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    accepted = await inbox.submit(echo(delay_s=0.8))
    await timer_is_set(log, accepted.task_id)
    assert (await inbox.cancel(accepted.task_id, CancelTask())).state == "cancelled"
    after = await inbox.submit(echo(delay_s=1.2))
    await happened(log, after.task_id, "submitted", "queued")
    assert await types(log, accepted.task_id) == ["submitted", "cancelled"]
    await eventually(lambda: on_nothing(log, "bl.timer.>"))
    assert await queue(log) == 1


async def on_nothing(log: EventLog, subject: str) -> bool:
    return await on(log, subject) == {}


async def test_the_repeat_of_a_delayed_request_is_the_same_task(log: EventLog, inbox: Inbox) -> None:
    first = await inbox.submit(echo(delay_s=60), idempotency_key="k")
    again = await inbox.submit(echo(delay_s=60), idempotency_key="k")
    assert (again.task_id, again.created, again.run_at) == (first.task_id, False, first.run_at)


async def test_a_task_that_nobody_pulls_expires_by_itself(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    expires_at = later(log, 0.5)
    accepted = await inbox.submit(echo(expires_at=expires_at))
    await happened(log, accepted.task_id, "submitted", "expired")
    last = await log.read_last(TASKS, f"bl.task.{accepted.task_id}.>")
    assert last is not None
    assert last.recorded_at >= expires_at
    assert await queue(log) == 0
    with pytest.raises(IllegalTransition, match="expired"):
        await inbox.cancel(accepted.task_id, CancelTask())


async def test_a_task_that_has_begun_does_not_expire(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    begun = await inbox.submit(echo(expires_at=later(log, 0.3)))
    await assign(log, begun.task_id, begun.sequence)
    waiting = await inbox.submit(echo(expires_at=later(log, 0.4)))
    await happened(log, waiting.task_id, "submitted", "expired")
    assert await types(log, begun.task_id) == ["submitted", "assigned"]


async def test_reactors_and_cancels_race_to_one_end(log: EventLog, inbox: Inbox) -> None:
    reactors = [Reactor(log, inbox), Reactor(log, inbox)]
    for reactor in reactors:
        await reactor.start()
    expires_at = later(log, 0.3)
    accepted = [await inbox.submit(echo(expires_at=expires_at)) for _ in range(20)]
    await eventually(lambda: log.clock() >= expires_at)
    for each in accepted[::2]:
        try:
            await inbox.cancel(each.task_id, CancelTask())
        except IllegalTransition:
            assert await types(log, each.task_id) == ["submitted", "expired"]
    for each in accepted:
        await eventually(lambda each=each: ended(log, each.task_id))
    for reactor in reactors:
        await reactor.close()


async def ended(log: EventLog, task_id: TaskId) -> bool:
    told = await types(log, task_id)
    assert told in (["submitted"], ["submitted", "cancelled"], ["submitted", "expired"])
    return len(told) == 2


async def test_an_expiry_without_its_task_does_nothing_and_hinders_nobody(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    """A gateway died between the timer and the task; the request comes again, with another time."""
    command = echo(expires_at=later(log, 0.6))
    event = await inbox.prepare(command, idempotency_key="k")
    await log.append(log.expiry_append(event.task_id, later(log, 3600)))
    accepted = await inbox.submit(command, idempotency_key="k")
    assert (accepted.task_id, accepted.created) == (event.task_id, True)
    await happened(log, accepted.task_id, "submitted", "expired")


async def test_an_expiry_that_comes_early_is_set_again(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    command = echo(expires_at=later(log, 0.8))
    event = await inbox.prepare(command, idempotency_key="k")
    await log.append(log.expiry_append(event.task_id, later(log, 0.2)))
    accepted = await inbox.submit(command, idempotency_key="k")
    await log.append(log.expiry_append(accepted.task_id, later(log, 0.1), replace=True))
    await eventually(lambda: on(log, "bl.due.>"))
    await happened(log, accepted.task_id, "submitted", "expired")
    last = await log.read_last(TASKS, f"bl.task.{accepted.task_id}.>")
    assert last is not None
    assert command.expires_at is not None
    assert last.recorded_at >= command.expires_at


async def test_an_expiry_that_is_due_before_its_task_is_in_the_log_finds_it_later(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    event = await inbox.prepare(echo(expires_at=later(log, 0.3)))
    assert event.expires_at is not None
    await log.append(log.expiry_append(event.task_id, event.expires_at))

    async def came_too_early() -> bool:
        told = await log.connection.js.consumer_info(TASKS, "reactor")
        return bool(await on(log, f"bl.due.{event.task_id}.>")) and (told.num_ack_pending or 0) > 0

    await eventually(came_too_early)
    await log.append(log.task_append(event, 0, route=route_of(event)))
    await happened(log, event.task_id, "submitted", "expired")
    await eventually(lambda: is_empty(log))


async def is_empty(log: EventLog) -> bool:
    return await queue(log) == 0
