"""What runs in the background ends, even where a cancellation is swallowed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.requests import Request

from bitinglip.events.ending import end
from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.gateway import archiver, leaving
from bitinglip.gateway.archiver import ArchiveKeeper
from bitinglip.gateway.completions import Completions
from bitinglip.gateway.keysweep import KeySweep
from bitinglip.gateway.overdue import OverdueWork
from bitinglip.gateway.pressure import Pressure
from bitinglip.projections.source import read_up_to
from bitinglip.tasks.stranded import StrandedWork


async def swallow_one(left: list[int]) -> None:
    """Wait for ever; as `wait_for` does before Python 3.12, go on after a cancellation, once."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not left:
                raise
            left.pop()


async def test_it_is_cancelled_until_it_has_ended() -> None:
    left = [1, 2]
    task = asyncio.create_task(swallow_one(left))
    await asyncio.sleep(0)  # sleep-ok: the task begins
    await end(lambda: [None, task], patience_s=0.01)
    assert task.cancelled()
    assert left == []


async def test_tasks_that_are_begun_meanwhile_end_too() -> None:
    tasks = [asyncio.create_task(swallow_one([1]))]

    def begin(_: object) -> None:
        if len(tasks) < 3:
            tasks.append(asyncio.create_task(swallow_one([])))
            tasks[-1].add_done_callback(begin)

    tasks[0].add_done_callback(begin)
    await asyncio.sleep(0)  # sleep-ok: the task begins
    await end(lambda: tasks, patience_s=0.01)
    await end(lambda: tasks, patience_s=0.01)
    assert all(task.done() for task in tasks)


class Deaf:
    """A source whose reader swallows a cancellation, and reads on."""

    def __init__(self, last: int) -> None:
        self._last = last

    async def last(self, stream: str) -> int:
        """Return the last sequence."""
        return self._last

    async def read(self, stream: str, after: int) -> AsyncGenerator[Messages]:
        """Yield batches of one message, on and on."""
        swallowed = False
        for sequence in range(after + 1, 10**6):
            if sequence > self._last and not swallowed:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    swallowed = True
            yield Messages.of([RawMessage(sequence, 0, f"bl.{stream}", b"{}")])


async def test_a_reader_that_swallows_its_cancellation_holds_up_nobody() -> None:
    async with asyncio.timeout(10), aclosing(read_up_to(Deaf(2), "TASKS", 0, 2)) as batches:
        assert [batch.sequences[-1] async for batch in batches] == [1, 2]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ArchiveKeeper, "_task"),
        (Pressure, "_looking"),
        (KeySweep, "_task"),
        (OverdueWork, "_task"),
        (Completions, "_watching"),
        (StrandedWork, "_task"),
    ],
)
async def test_what_closes_waits_for_nothing_that_goes_on(
    kind: type[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiver, "CLEANING_S", 0.01)
    task = asyncio.create_task(swallow_one([1]))
    await asyncio.sleep(0)  # sleep-ok: the task begins
    closed = object.__new__(kind)
    setattr(closed, name, task)
    async with asyncio.timeout(10):
        await closed.close()
    assert task.cancelled()


async def test_a_caller_who_left_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "CLEANING_S", 0.01)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "method": "GET", "path": "/", "headers": []}, gone)
    left = [1]
    with pytest.raises(leaving.CallerLeft):
        async with asyncio.timeout(10):
            await leaving.while_here(request, swallow_one(left))
    assert left == []
