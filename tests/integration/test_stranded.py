"""Work that its consumer counts as done, and that is still in the queue."""

from __future__ import annotations

from typing import Any

import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.stranded import StrandedWork
from bitinglip.events.streams import QUEUE, Route, consumer
from bitinglip.events.subjects import encode_token
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox

ROUTE = Route("normal", encode_token("echo"))


@pytest.fixture
async def forgetful(log: EventLog) -> None:
    """A consumer that hands each message out once, and then forgets it, acked or not."""
    declared = consumer(ROUTE, 0.2)
    declared.max_deliver = 1
    await log.connection.js.add_consumer(QUEUE, config=declared)


async def hand_out(log: EventLog, count: int) -> list[str]:
    """Submit tasks, and take them as a worker that says nothing more."""
    inbox = Inbox(log, 65_536)
    ids = [(await inbox.submit(SubmitTask(kind="echo", model="echo"))).task_id for _ in range(count)]
    subscription = await log.connection.js.pull_subscribe_bind(ROUTE.consumer, QUEUE)
    taken = 0
    while taken < count:
        taken += len(await subscription.fetch(count - taken, timeout=10))
    await subscription.unsubscribe()
    return [str(task_id) for task_id in ids]


async def test_stranded_work_is_handed_out_again(log: EventLog, forgetful: None, eventually: Any) -> None:
    ids = await hand_out(log, 3)

    async def forgotten() -> bool:
        info = await log.connection.js.consumer_info(QUEUE, ROUTE.consumer)
        return (info.num_pending, info.num_ack_pending) == (0, 0)

    await eventually(forgotten)
    stranded = StrandedWork(log.connection)
    assert await stranded.look() == []  # once is chance
    assert await stranded.look() == [ROUTE]
    queue = WorkQueue(log.connection, 10)
    found = [str(delivery.event.event.task_id) for delivery in await queue.pull(ROUTE, 10)]  # type: ignore[attr-defined]
    assert sorted(found) == sorted(ids)
    assert await stranded.look() == []
    await queue.close()


async def test_work_that_waits_or_runs_is_left_alone(log: EventLog) -> None:
    queue = WorkQueue(log.connection, 10)
    await queue.ensure([ROUTE])
    inbox = Inbox(log, 65_536)
    for _ in range(3):
        await inbox.submit(SubmitTask(kind="echo", model="echo"))
    (running,) = await queue.wait([ROUTE], 1)
    stranded = StrandedWork(log.connection)
    for _ in range(3):
        assert await stranded.look() == []
    await running.nak()
    for _ in range(3):
        assert await stranded.look() == []
    await queue.close()
