"""Reading a stream up to a sequence, whatever has become of the event that had it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from bitinglip.events.log import EventLog
from bitinglip.events.streams import WORKERS
from bitinglip.events.subjects import worker_subject
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted
from bitinglip.projections.source import LogSource, read_up_to

Eventually = Callable[..., Awaitable[Any]]
WORKER = "rig-1-0"


async def tell(log: EventLog, ttl_s: int | None = None) -> int:
    event = WorkerStarted if ttl_s is None else WorkerHeartbeat
    said = event.model_validate(event.example)
    subject = worker_subject(WORKER, event.type.partition(".")[2])
    return await log.append(log.fact_append(said, subject, WORKER, ttl_s=ttl_s))


async def read(log: EventLog, after: int, target: int) -> list[int]:
    batches = read_up_to(LogSource(log), WORKERS, after, target)
    return [sequence async for batch in batches for sequence in batch.sequences]


async def test_it_ends_with_the_target(log: EventLog) -> None:
    sent = [await tell(log) for _ in range(6)]
    assert await read(log, 0, 4) == sent[:4]
    assert await read(log, 2, 4) == sent[2:4]
    assert await read(log, 4, 4) == []
    assert await read(log, 0, 0) == []
    assert await read(log, 0, 100) == sent


async def test_an_empty_stream_has_nothing(log: EventLog) -> None:
    assert await read(log, 0, 10) == []


async def test_a_target_that_is_gone_is_passed_by_what_comes_after_it(log: EventLog, eventually: Eventually) -> None:
    first, _, third = await tell(log), await tell(log, ttl_s=1), await tell(log)
    await eventually(lambda: _count(log, 2))
    assert await read(log, 0, 2) == [first]
    assert await read(log, 1, 2) == []
    assert await read(log, 0, 3) == [first, third]


async def test_a_target_that_was_the_last_and_is_gone_ends_with_the_one_before(
    log: EventLog, eventually: Eventually
) -> None:
    first, second = await tell(log), await tell(log, ttl_s=1)
    await eventually(lambda: _count(log, 1))
    assert await LogSource(log).last(WORKERS) == first
    assert await read(log, 0, second) == [first]


async def _count(log: EventLog, wanted: int) -> bool:
    return (await log.connection.js.stream_info(WORKERS)).state.messages == wanted
