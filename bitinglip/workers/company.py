"""Who runs beside whom. A task whose engine has died may be the reason, and would take its next company along.

So whoever was in a crash runs in smaller company, and then alone: one task that crashes whatever runs it costs the
others one attempt, or two, and never their last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from math import isqrt
from typing import TypeVar

from bitinglip.tasks.state import Task

_T = TypeVar("_T")


def company(task: Task, most: int) -> int:
    """Return how many tasks, itself included, a task may run with, of at most so many.

    After a crash that is the square root of the most, so that as many passes as each of them has tasks find the one
    that is the reason; after another one, and at a last attempt, it is alone.
    """
    if task.crashes == 0:
        return most
    last = task.failures + 1 >= task.submitted.retry.max_attempts
    return 1 if last or task.crashes > 1 else max(1, isqrt(most))


def apart(items: Iterable[_T], company: Callable[[_T], int]) -> list[list[_T]]:
    """Split a batch into parts of which none is larger than what any of its items may be with.

    The order within a part is that of the items; the parts with most room come first.
    """
    rooms: dict[int, list[_T]] = {}
    for item in items:
        rooms.setdefault(company(item), []).append(item)
    return [
        alike[start : start + most]
        for most, alike in sorted(rooms.items(), reverse=True)
        for start in range(0, len(alike), most)
    ]


class Rooms:
    """Keeps parts that want to be by themselves from those that run at the same time; who waits longest goes first."""

    def __init__(self) -> None:
        self._inside = 0
        self._door = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()

    @asynccontextmanager
    async def enter(self, *, alone: bool) -> AsyncIterator[None]:
        """Be inside, with others or alone."""
        async with self._door:
            if alone:
                await self._empty.wait()
                yield
                return
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()
