"""Commands against the real log: acceptance, idempotency, cancelling."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from bitinglip.errors import IdempotencyMismatch, IllegalTransition, NoServer, TaskNotFound
from bitinglip.events import artifacts
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE
from bitinglip.events.task import TaskAssigned, TaskSubmitted, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Inbox

ECHO = SubmitTask(kind="echo", model="echo", params={"message": 1})


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=1024)


async def assign(log: EventLog, task_id: TaskId, expected: int) -> int:
    return await log.append(
        log.task_append(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task_id}), expected)
    )


async def test_an_accepted_task_is_in_the_log(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(ECHO, key_id="k", request_id="r")
    (recorded,) = await log.read_task(accepted.task_id)
    assert accepted.created
    assert recorded.causation == "r"
    assert isinstance(recorded.event, TaskSubmitted)
    assert (recorded.event.params, recorded.event.key_id) == ({"message": 1}, "k")


async def test_big_parameters_become_an_artifact(log: EventLog, inbox: Inbox) -> None:
    params = {"message": "x" * 5000}
    accepted = await inbox.submit(SubmitTask(kind="echo", model="echo", params=params))
    (recorded,) = await log.read_task(accepted.task_id)
    assert isinstance(recorded.event, TaskSubmitted)
    assert recorded.event.params is None
    assert recorded.event.params_ref is not None
    body, media_type = await artifacts.get(log.connection, recorded.event.params_ref.sha256)
    assert (orjson.loads(body), media_type) == (params, "application/json")


async def test_an_idempotency_key_makes_one_task_however_often_it_is_sent(log: EventLog, inbox: Inbox) -> None:
    accepted = await asyncio.gather(*[inbox.submit(ECHO, idempotency_key="a") for _ in range(20)])
    assert len({each.task_id for each in accepted}) == 1
    assert sum(each.created for each in accepted) == 1
    assert await log.last_sequence("TASKS") == 1


async def test_a_repeat_that_a_copy_of_the_log_does_not_know_yet_can_be_sent_again(
    log: EventLog, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await inbox.submit(ECHO, idempotency_key="k")

    async def unheard(*_: object) -> list[Recorded]:
        return []

    with monkeypatch.context() as patch:
        patch.setattr(log, "read_task", unheard)
        with pytest.raises(NoServer, match="had yet to hear of"):
            await inbox.submit(ECHO, idempotency_key="k")
    assert (await inbox.submit(ECHO, idempotency_key="k")).task_id == first.task_id


async def test_an_idempotency_key_belongs_to_its_caller_and_its_request(inbox: Inbox) -> None:
    first = await inbox.submit(ECHO, key_id="k1", idempotency_key="a")
    assert (await inbox.submit(ECHO, key_id="k2", idempotency_key="a")).task_id != first.task_id
    with pytest.raises(IdempotencyMismatch):
        await inbox.submit(ECHO.model_copy(update={"lane": "batch"}), key_id="k1", idempotency_key="a")


async def test_a_queued_task_is_cancelled_at_once_and_leaves_its_queue(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(ECHO)
    task = await inbox.cancel(accepted.task_id, CancelTask(by="me"))
    assert task.state == "cancelled"
    assert (await log.connection.js.stream_info(QUEUE)).state.messages == 0
    assert (await inbox.cancel(accepted.task_id, CancelTask())).state == "cancelled"
    assert len(await log.read_task(accepted.task_id)) == 2


async def test_a_running_task_is_asked_once(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(ECHO)
    await assign(log, accepted.task_id, accepted.sequence)
    for _ in range(2):
        task = await inbox.cancel(accepted.task_id, CancelTask(by="me"))
        assert task.state == "running"
    assert [recorded.type for recorded in await log.read_task(accepted.task_id)][2:] == ["task.cancel_requested"]


async def test_cancels_and_a_worker_race_to_one_outcome(log: EventLog, inbox: Inbox) -> None:
    for _ in range(20):
        accepted = await inbox.submit(ECHO)
        outcomes = await asyncio.gather(
            inbox.cancel(accepted.task_id, CancelTask()),
            assign(log, accepted.task_id, accepted.sequence),
            return_exceptions=True,
        )
        types = [recorded.type for recorded in await log.read_task(accepted.task_id)][1:]
        assert types in (["task.cancelled"], ["task.assigned", "task.cancel_requested"]), outcomes


async def test_what_has_ended_cannot_be_cancelled(log: EventLog, inbox: Inbox) -> None:
    accepted = await inbox.submit(ECHO)
    sequence = await assign(log, accepted.task_id, accepted.sequence)
    done = TaskSucceeded(task_id=accepted.task_id, attempt=1, worker_id="rig-1-0", result={}, run_ms=1)
    await log.append(log.task_append(done, sequence))
    with pytest.raises(IllegalTransition, match="succeeded"):
        await inbox.cancel(accepted.task_id, CancelTask())


async def test_a_task_that_is_not_there_cannot_be_cancelled(log: EventLog, inbox: Inbox) -> None:
    with pytest.raises(TaskNotFound):
        await inbox.cancel(TaskId(log.ids()), CancelTask())
