"""Tasks that wait for others, on the real log: released with their results, dropped, looked at again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from bitinglip.errors import IdempotencyMismatch, InvalidInput
from bitinglip.events import artifacts
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskCancelled, TaskQueued, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.state import Task, fold
from tests.integration.test_inbox import assign
from tests.integration.test_times import echo, happened, on, on_nothing, queue, types
from tests.support.server import eventually

NOBODY = TaskId("01JZ0000000000000000000000")


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=1024)


@pytest.fixture
async def reactor(log: EventLog, inbox: Inbox) -> AsyncIterator[Reactor]:
    reactor = Reactor(log, inbox)
    await reactor.start()
    yield reactor
    await reactor.close()


def after(*task_ids: TaskId, **fields: Any) -> SubmitTask:
    return echo(depends_on=task_ids, **fields)


def result_of(task_id: TaskId, path: str = "message") -> dict[str, Any]:
    return {"message": {"$result": task_id, "path": path}}


async def task_of(log: EventLog, task_id: TaskId) -> Task:
    task = fold(await log.read_task(task_id))
    assert task is not None
    return task


async def succeed(log: EventLog, task_id: TaskId, message: Any = None) -> None:
    sequence = await assign(log, task_id, (await task_of(log, task_id)).sequence)
    told = {"task_id": task_id, "result": {"message": message}}
    await log.append(log.task_append(TaskSucceeded.model_validate(TaskSucceeded.example | told), sequence))


async def released(log: EventLog, task_id: TaskId) -> TaskQueued:
    await happened(log, task_id, "submitted", "queued")
    event = (await log.read_task(task_id))[-1].event
    assert isinstance(event, TaskQueued)
    assert (event.attempt, event.reason) == (1, "released")
    return event


async def reason_of(log: EventLog, task_id: TaskId) -> str:
    await happened(log, task_id, "submitted", "cancelled")
    event = (await log.read_task(task_id))[-1].event
    assert isinstance(event, TaskCancelled)
    return event.reason or ""


async def is_waited_for(log: EventLog, task_id: TaskId) -> None:
    await eventually(lambda: on(log, f"bl.timer.{task_id}.after"))


async def test_a_chain_hands_its_results_on(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    first = (await inbox.submit(echo(params={"message": {"seeds": [3, 5]}}))).task_id
    second = await inbox.submit(after(first, params=result_of(first, "message.seeds.1")))
    third = (await inbox.submit(after(second.task_id, params=result_of(second.task_id, "")))).task_id
    assert second.waits
    await is_waited_for(log, third)
    await eventually(lambda: queue(log))
    assert await queue(log) == 1
    await succeed(log, first, {"seeds": [3, 5]})
    assert (await released(log, second.task_id)).params == {"message": 5}
    assert (await task_of(log, second.task_id)).params == {"message": 5}
    assert await types(log, third) == ["submitted"]
    await succeed(log, second.task_id, 5)
    assert (await released(log, third)).params == {"message": {"message": 5}}
    await eventually(lambda: on_nothing(log, "bl.timer.>"))


async def test_a_diamond_waits_for_both_of_its_sides(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    top = (await inbox.submit(echo())).task_id
    left, right = [(await inbox.submit(after(top))).task_id for _ in range(2)]
    both = [{"$result": left, "path": "message"}, {"$result": right, "path": "message"}]
    bottom = (await inbox.submit(after(left, right, params={"message": both}))).task_id
    await succeed(log, top)
    assert (await released(log, left)).params is None
    await released(log, right)
    await succeed(log, right, "r")
    await is_waited_for(log, bottom)
    assert await types(log, bottom) == ["submitted"]
    await succeed(log, left, "l")
    assert (await released(log, bottom)).params == {"message": ["l", "r"]}


async def test_what_has_ended_is_not_waited_for(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    first = (await inbox.submit(echo())).task_id
    await succeed(log, first, "there")
    second = (await inbox.submit(after(first, params=result_of(first)))).task_id
    assert (await released(log, second)).params == {"message": "there"}


async def test_an_end_without_success_cancels_all_that_come_after(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    first, other = [(await inbox.submit(echo())).task_id for _ in range(2)]
    second = (await inbox.submit(after(first, other))).task_id
    third = (await inbox.submit(after(second))).task_id
    anyway = (await inbox.submit(after(third, on_failure="run"))).task_id
    needy = (await inbox.submit(after(third, on_failure="run", params=result_of(third)))).task_id
    await inbox.cancel(first, CancelTask())
    assert await reason_of(log, second) == f"task {first}, which it depends on, was cancelled"
    assert await reason_of(log, third) == f"task {second}, which it depends on, was cancelled"
    await released(log, anyway)
    assert f"task {third} has no result" in await reason_of(log, needy)


async def test_a_result_that_does_not_fit_ends_the_task_and_says_why(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    first = (await inbox.submit(echo())).task_id
    text = {"kind": "text-generation", "model": "m", "depends_on": [first]}
    misfit = (await inbox.submit(SubmitTask.model_validate(text | {"params": {"prompt": {"$result": first}}}))).task_id
    missing = (await inbox.submit(after(first, params=result_of(first, "message.7.text")))).task_id
    await succeed(log, first, [1])
    assert "params.prompt" in await reason_of(log, misfit)
    assert "has no 'message.7.text'" in await reason_of(log, missing)


async def test_media_of_a_task_that_is_waited_for_are_found_at_its_end(
    log: EventLog, inbox: Inbox, reactor: Reactor
) -> None:
    first = (await inbox.submit(echo())).task_id
    caption = {"kind": "image-to-text", "model": "m", "params": {"image": f"task:{first}"}, "depends_on": [first]}
    second = (await inbox.submit(SubmitTask.model_validate(caption))).task_id
    picture = await artifacts.put(log.connection, b"a picture", "image/png")
    await succeed(log, first, picture.model_dump())
    assert (await released(log, second)).params == {"image": f"artifact:{picture.sha256}"}


async def test_large_parameters_are_released_as_an_artifact(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    first = (await inbox.submit(echo())).task_id
    second = (await inbox.submit(after(first, params=result_of(first) | {"steps": 0}))).task_id
    await succeed(log, first, "x" * 2000)
    event = await released(log, second)
    assert event.params is None
    assert event.params_ref is not None
    assert (await task_of(log, second)).params_ref == event.params_ref


async def test_a_task_that_waits_can_be_cancelled(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    first = (await inbox.submit(echo())).task_id
    second = (await inbox.submit(after(first))).task_id
    await is_waited_for(log, second)
    assert (await inbox.cancel(second, CancelTask())).state == "cancelled"
    await eventually(lambda: on_nothing(log, "bl.timer.>"))
    await succeed(log, first)
    third = (await inbox.submit(after(first))).task_id
    await released(log, third)
    assert await types(log, second) == ["submitted", "cancelled"]


async def test_what_ended_while_no_gateway_was_there_is_answered_by_the_next_one(log: EventLog, inbox: Inbox) -> None:
    first, other = [(await inbox.submit(echo())).task_id for _ in range(2)]
    reactor = Reactor(log, inbox)
    await reactor.start()
    waiting = [(await inbox.submit(after(each))).task_id for each in (first, other)]
    for each in waiting:
        await is_waited_for(log, each)
    await reactor.close()
    unseen = (await inbox.submit(after(first))).task_id
    await succeed(log, first)
    others = [Reactor(log, inbox), Reactor(log, inbox)]
    for each in others:
        await each.start()
    await released(log, waiting[0])
    await released(log, unseen)
    await succeed(log, other)
    await released(log, waiting[1])
    for each in others:
        await each.close()


async def test_a_task_that_is_not_followed_is_looked_at_when_its_timer_fires(log: EventLog, inbox: Inbox) -> None:
    reactor = Reactor(log, inbox, followed_most=0)
    await reactor.start()
    first = (await inbox.submit(echo())).task_id
    second = (await inbox.submit(after(first))).task_id
    await is_waited_for(log, second)
    await succeed(log, first)
    assert await types(log, second) == ["submitted"]
    await log.append(log.look_append(second, log.clock()))
    await released(log, second)
    await reactor.close()


async def test_only_tasks_that_are_there_can_be_waited_for(log: EventLog, inbox: Inbox) -> None:
    with pytest.raises(InvalidInput, match=f"there is no task {NOBODY}"):
        await inbox.submit(after(NOBODY))
    own = (await inbox.prepare(echo(), idempotency_key="k")).task_id
    with pytest.raises(InvalidInput, match=f"there is no task {own}"):
        await inbox.submit(after(own), idempotency_key="k")
    assert await log.last_sequence(TASKS) == 0


async def test_the_repeat_of_a_request_that_waits_is_the_same_task(log: EventLog, inbox: Inbox) -> None:
    first = (await inbox.submit(echo())).task_id
    accepted = await inbox.submit(after(first), idempotency_key="k")
    again = await inbox.submit(after(first), idempotency_key="k")
    assert (again.task_id, again.created, again.waits) == (accepted.task_id, False, True)
    with pytest.raises(IdempotencyMismatch):
        await inbox.submit(echo(), idempotency_key="k")


async def test_a_retry_waits_for_the_same_tasks(log: EventLog, inbox: Inbox, reactor: Reactor) -> None:
    first = (await inbox.submit(echo())).task_id
    second = (await inbox.submit(after(first, params=result_of(first)))).task_id
    await inbox.cancel(second, CancelTask())
    third = (await inbox.retry(second)).task_id
    await succeed(log, first, 7)
    assert (await released(log, third)).params == {"message": 7}
