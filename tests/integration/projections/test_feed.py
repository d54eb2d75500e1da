"""Following tasks by the feed: what the read model reads of the log is handed to whoever follows a task."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.feed import TaskFeed
from bitinglip.events.live import LiveEvents
from bitinglip.events.log import EventLog
from bitinglip.events.subjects import encode_token
from bitinglip.events.task import TaskProgressed, TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Nats, Projections

ROUTE = ("normal", encode_token("openai-community/gpt2"))
Eventually = Callable[..., Awaitable[Any]]


@pytest.fixture
async def readmodel(log: EventLog, tmp_path: Path) -> AsyncIterator[ReadModel]:
    settings = Projections(memory_limit="200MB", read_wait_s=20.0, batch_max=5)
    readmodel = await ReadModel.open(settings, tmp_path / "p.duckdb", log)
    await readmodel.wait_ready()
    yield readmodel
    await readmodel.close()


async def submit(log: EventLog, task_id: TaskId) -> int:
    event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id})
    return await log.append(log.task_append(event, 0, route=ROUTE))


async def tick(log: EventLog, task_id: TaskId, after: int) -> int:
    event = TaskProgressed.model_validate(TaskProgressed.example | {"task_id": task_id})
    return await log.append(log.task_append(event, after))


class Reader:
    """Follows one task from before its submission on, and notes what it sees."""

    def __init__(self, log: EventLog, feed: TaskFeed) -> None:
        self.task_id = TaskId(log.ids())
        self.seen: list[int] = []
        self.live = LiveEvents(log.connection, self.task_id, feed)
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Reader:
        await self.live.open()
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.live.end()
        assert self._reading is not None
        await self._reading
        await self.live.close()

    async def _read(self) -> None:
        async with aclosing(self.live.batches(0, heard_all=True)) as batches:
            async for batch in batches:
                self.seen += [message.sequence for message in batch]


async def test_a_followed_task_costs_no_subscription(
    log: EventLog, readmodel: ReadModel, eventually: Eventually
) -> None:
    before = log.connection.client._sid
    async with Reader(log, readmodel.feed) as one, Reader(log, readmodel.feed) as other:
        sequence = await submit(log, one.task_id)
        written = [sequence, await tick(log, one.task_id, sequence)]
        others = [await submit(log, other.task_id)]
        await eventually(lambda: one.seen == written and other.seen == others)
        assert log.connection.client._sid == before
    assert not readmodel.feed._listeners


async def test_a_follower_goes_on_over_a_rebuild(log: EventLog, readmodel: ReadModel, eventually: Eventually) -> None:
    async with Reader(log, readmodel.feed) as reader:
        written = [await submit(log, reader.task_id)]
        rebuilding = asyncio.create_task(readmodel.rebuild())
        while not rebuilding.done():
            written.append(await tick(log, reader.task_id, written[-1]))
        written.append(await tick(log, reader.task_id, written[-1]))
        await eventually(lambda: reader.seen == written)
    await eventually(lambda: readmodel.feed.flowing)


async def test_a_writer_that_is_behind_holds_no_follower_back(
    log: EventLog, readmodel: ReadModel, eventually: Eventually
) -> None:
    database = readmodel._current.database
    async with Reader(log, readmodel.feed) as reader:
        written = [await submit(log, reader.task_id)]
        await readmodel.wait("TASKS", written[0])
        database.cursor().execute("alter table events rename to away")
        for _ in range(40):  # four times what the writer takes before it holds back
            written.append(await tick(log, reader.task_id, written[-1]))
        await eventually(lambda: reader.seen == written)
        assert not readmodel.feed.flowing
        database.cursor().execute("alter table away rename to events")
        await readmodel.wait("TASKS", written[-1])
        await eventually(lambda: readmodel.feed.flowing)
        async with Reader(log, readmodel.feed) as late:
            sequence = await submit(log, late.task_id)
            await eventually(lambda: late.seen == [sequence])
        written.append(await tick(log, reader.task_id, written[-1]))
        await eventually(lambda: reader.seen == written)


async def test_a_follower_switches_while_the_server_is_away(
    restartable_nats: Any, tmp_path: Path, eventually: Eventually
) -> None:
    log = await EventLog.connect(Nats(url=restartable_nats.url, append_timeout_s=20.0), "/test")
    feed = TaskFeed()
    feed.flow()
    async with Reader(log, feed) as reader:
        sequence = await submit(log, reader.task_id)  # nobody reads the tail: the feed has not offered it
        await restartable_nats.kill()
        feed.stall()
        await restartable_nats.start()
        written = [sequence, await tick(log, reader.task_id, sequence)]
        await eventually(lambda: reader.seen == written)
    await log.close()


class Ear:
    def __init__(self) -> None:
        self.got: list[int | None] = []

    def heard(self, message: RawMessage) -> None:
        self.got.append(message.sequence)

    def interrupted(self) -> None:
        self.got.append(None)


def test_a_feed_hands_each_event_to_those_who_listen_for_its_task() -> None:
    feed, first, second, other = TaskFeed(), Ear(), Ear(), Ear()
    a, b = TaskId("01A"), TaskId("01B")
    assert not feed.listen(a, first)
    feed.flow()
    assert all(feed.listen(task_id, ear) for task_id, ear in ((a, first), (a, second), (b, other)))
    messages = Messages.of(RawMessage(n, 0, f"bl.task.{'01A' if n % 2 else '01B'}.progressed", b"{}") for n in range(4))
    feed.offer(messages)
    feed.forget(a, second)
    feed.forget(b, second)
    feed.offer(messages[1:2])
    feed.stall()
    feed.offer(messages)
    assert (first.got, second.got, other.got) == ([1, 3, 1, None], [1, 3], [0, 2, None])
