"""Reading one task by direct get: whole, in order, and without asking for what is not there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from nats.aio.msg import Msg

from bitinglip.events.direct import get_after
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.subjects import task_events
from bitinglip.ids import TaskId
from tests.integration.test_log import submit, tick

EVENTS = 5
"""Of each task."""


@pytest.fixture
async def asked(log: EventLog) -> AsyncIterator[list[dict[str, Any]]]:
    """What the server is asked for of TASKS."""
    requests: list[dict[str, Any]] = []

    async def heard(msg: Msg) -> None:
        requests.append(orjson.loads(msg.data))

    subscription = await log.connection.subscribe(f"$JS.API.DIRECT.GET.{TASKS}", heard)
    yield requests
    await log.connection.unsubscribe(subscription)


async def interleaved(log: EventLog) -> tuple[TaskId, list[int]]:
    """Append the events of two tasks in turns; return the first one, and the sequences of its events."""
    (one, last), (other, beside) = await submit(log), await submit(log)
    sequences = [last]
    for step in range(1, EVENTS):
        last = await log.append(tick(log, one, last, step))
        beside = await log.append(tick(log, other, beside, step))
        sequences.append(last)
    return one, sequences


async def found(log: EventLog, task_id: TaskId, after: int) -> list[int]:
    return [message.sequence for message in await get_after(log.connection, TASKS, task_events(task_id), after)]


async def test_a_task_is_read_after_any_sequence(log: EventLog) -> None:
    task_id, sequences = await interleaved(log)
    for after in range(sequences[-1] + 2):
        assert await found(log, task_id, after) == [sequence for sequence in sequences if sequence > after]


async def test_the_server_is_never_asked_for_more_than_there_is(log: EventLog, asked: list[dict[str, Any]]) -> None:
    """It would look through the rest of the stream."""
    task_id, sequences = await interleaved(log)
    asked.clear()
    for after in range(sequences[-1] + 2):
        await found(log, task_id, after)
    batches = [request for request in asked if "batch" in request]
    assert batches
    for request in batches:
        assert request["batch"] <= sum(sequence >= request["seq"] for sequence in sequences)


async def test_what_is_appended_while_a_task_is_read_leaves_no_gap(log: EventLog) -> None:
    task_id, last = await submit(log)

    async def append() -> None:
        nonlocal last
        for step in range(1, 200):
            last = await log.append(tick(log, task_id, last, step))

    appending = asyncio.create_task(append())
    lengths = [0]
    while not appending.done():
        steps = [getattr(recorded.event, "step", 0) for recorded in await log.read_task(task_id)]
        assert steps == list(range(len(steps)))
        lengths.append(len(steps))
    await appending
    assert lengths == sorted(lengths)
    assert len(await log.read_task(task_id)) == 200
