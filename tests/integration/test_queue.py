"""The work queue against a real server: pulls, leases, hand-backs, withdrawn requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery, WorkQueue
from bitinglip.events.streams import QUEUE, QUEUES_MOST, TASKS, Route, ensure_streams
from bitinglip.events.subjects import TaskSubject, encode_token
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId

NORMAL = Route("normal", encode_token("demo/a"))
URGENT = Route("interactive", encode_token("demo/a"))


@pytest.fixture
async def queue(log: EventLog) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(log.connection, lease_s=0.6)
    await queue.ensure([NORMAL, URGENT])
    yield queue
    await queue.close()


async def submit(log: EventLog, count: int, route: Route = NORMAL) -> list[TaskId]:
    ids = [TaskId(log.ids()) for _ in range(count)]
    events = [TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id}) for task_id in ids]
    await log.append_all([log.task_append(event, 0, route=(route.lane, route.queue)) for event in events])
    return ids


def task_ids(deliveries: list[Delivery]) -> list[Any]:
    return [delivery.event.event.task_id for delivery in deliveries]  # type: ignore[attr-defined]


async def take(queue: WorkQueue, count: int, route: Route = NORMAL) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await queue.pull(route, count - len(found))
    return found


async def test_work_comes_in_order_and_once(log: EventLog, queue: WorkQueue) -> None:
    ids = await submit(log, 50)
    deliveries = await take(queue, 50)
    assert task_ids(deliveries) == ids
    assert [delivery.event.sequence for delivery in deliveries] == list(range(1, 51))
    assert {delivery.delivered for delivery in deliveries} == {1}
    assert await queue.pull(NORMAL, 10) == []


async def test_work_that_cannot_be_read_stays_and_hinders_nobody(
    log: EventLog, queue: WorkQueue, caplog: pytest.LogCaptureFixture
) -> None:
    subject = TaskSubject(TaskId(log.ids()), "submitted", NORMAL.lane, NORMAL.queue)
    await log.connection.js.publish(str(subject), b"no event", stream=TASKS)
    [task_id] = await submit(log, 1)
    assert task_ids(await take(queue, 1)) == [task_id]
    assert "a work message cannot be read and stays in the queue" in caplog.text
    await log.connection.publish(next(iter(queue._requests.values())).inbox, b"from nobody")  # pyright: ignore[reportPrivateUsage]
    [another] = await submit(log, 1)
    assert task_ids(await take(queue, 1)) == [another]


async def test_a_pull_takes_no_more_than_it_asks_for(log: EventLog, queue: WorkQueue) -> None:
    await submit(log, 5)
    await take(queue, 2)
    info = await log.connection.js.consumer_info(QUEUE, NORMAL.consumer)
    assert info.num_ack_pending == 2


async def test_waiting_returns_what_comes_first_from_any_route(log: EventLog, queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.wait([URGENT, NORMAL], 10))
    (task_id,) = await submit(log, 1, URGENT)
    found = await asyncio.wait_for(waiting, 5)
    assert task_ids(found) == [task_id]
    assert found[0].route == URGENT


async def test_a_busy_worker_hands_back_what_its_standing_request_brings(log: EventLog, queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.wait([URGENT, NORMAL], 10))
    await submit(log, 1, URGENT)
    await asyncio.wait_for(waiting, 5)  # from here on this worker is busy, and its request on NORMAL still stands
    (later,) = await submit(log, 1)
    other = WorkQueue(log.connection, lease_s=600)
    assert task_ids(await take(other, 1)) == [later]
    await other.close()


async def test_nothing_is_lost_between_waits(log: EventLog, queue: WorkQueue) -> None:
    """Work keeps arriving while requests are made and answered: each task is seen, and once at its first delivery."""
    ids = set[TaskId]()

    async def produce() -> None:
        for index in range(100):
            ids.update(await submit(log, 1 + index % 3, NORMAL if index % 2 else URGENT))

    producing = asyncio.create_task(produce())
    seen: list[TaskId] = []
    async with asyncio.timeout(30):
        while not producing.done() or len(set(seen)) < len(ids):
            for delivery in await queue.wait([URGENT, NORMAL], 2):
                if delivery.delivered == 1:
                    seen += task_ids([delivery])
                await delivery.ack()
    assert sorted(seen) == sorted(ids)


async def test_a_lease_that_is_not_kept_ends(log: EventLog, queue: WorkQueue) -> None:
    (task_id,) = await submit(log, 1)
    await take(queue, 1)
    again = await asyncio.wait_for(queue.wait([NORMAL], 1), 10)
    assert task_ids(again) == [task_id]
    assert again[0].delivered == 2


async def test_a_lease_that_is_kept_does_not_end(log: EventLog, queue: WorkQueue) -> None:
    await submit(log, 1)
    (delivery,) = await take(queue, 1)
    waiting = asyncio.create_task(queue.wait([NORMAL], 1))
    for _ in range(8):
        await delivery.in_progress()
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
    again = await asyncio.wait_for(waiting, 10)
    assert again[0].delivered == 2


async def test_what_is_handed_back_comes_at_once(log: EventLog) -> None:
    queue = WorkQueue(log.connection, lease_s=600)
    await queue.ensure([NORMAL])
    (task_id,) = await submit(log, 1)
    (delivery,) = await take(queue, 1)
    await delivery.nak()
    again = await asyncio.wait_for(queue.wait([NORMAL], 1), 5)
    assert task_ids(again) == [task_id]
    await queue.close()


async def test_acked_work_is_gone(log: EventLog, queue: WorkQueue) -> None:
    await submit(log, 3)
    for delivery in await take(queue, 3):
        await delivery.ack()
    assert await queue.pull(NORMAL, 1) == []
    assert (await log.connection.js.stream_info(QUEUE)).state.messages == 0


async def test_a_cancelled_task_is_taken_out_of_the_queue(log: EventLog, queue: WorkQueue) -> None:
    first, second = await submit(log, 2)
    assert (await take(queue, 1))[0].event.sequence == 1
    await log.purge_queued(NORMAL.lane, NORMAL.queue, second)
    assert await queue.pull(NORMAL, 1) == []
    assert first != second


async def test_a_consumer_that_is_gone_is_made_again(log: EventLog, queue: WorkQueue) -> None:
    await log.connection.js.delete_consumer(QUEUE, NORMAL.consumer)
    (task_id,) = await submit(log, 1)
    assert task_ids(await take(queue, 1)) == [task_id]


async def test_an_interrupted_wait_returns(queue: WorkQueue) -> None:
    waiting = asyncio.create_task(queue.wait([NORMAL], 1))
    while not waiting.done():
        queue.interrupt()
        await asyncio.wait([waiting], timeout=0.05)
    assert waiting.result() == []


async def test_all_queues_are_told_of_however_many_there_are(log: EventLog, queue: WorkQueue) -> None:
    routes = [Route("batch", encode_token(f"demo/{number}")) for number in range(300)]  # a page has 256
    await queue.ensure(routes)
    await submit(log, 2, routes[0])
    await submit(log, 3, routes[-1])
    await take(queue, 1, routes[-1])
    depths = await log.queue_depths()
    assert depths.keys() == {route.consumer for route in (NORMAL, URGENT, *routes)}
    assert (depths[routes[0].consumer], depths[routes[-1].consumer]) == (2, 3)
    states = {state.route: state for state in await log.queue_states()}
    assert (states[routes[0]].waiting, states[routes[0]].handed_out) == (2, 0)
    assert (states[routes[-1]].waiting, states[routes[-1]].running) == (2, 1)


async def test_a_stream_made_with_the_servers_own_limit_of_queues_gets_ours(log: EventLog) -> None:
    js = log.connection.js
    made = (await js.stream_info(QUEUE)).config
    assert made.max_consumers == QUEUES_MOST
    await js.update_stream(made.evolve(max_consumers=1000))
    await ensure_streams(js, log.connection.settings, log.connection.unanswered)
    assert (await js.stream_info(QUEUE)).config.max_consumers == QUEUES_MOST
