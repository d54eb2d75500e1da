"""Who runs beside whom. A task whose engine has died may be the reason, and would take its next company along.

So whoever was in a crash runs in smaller company, by itself at its last attempt: one task that crashes whatever runs it
costs the others some of their attempts, and never the last one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

from bitinglip.tasks.state import Task

_T = TypeVar("_T")
ROUNDING = 1e-9
"""The square root of 256 is 16."""


def company(task: Task, most: int) -> int:
    """Return how many tasks, itself included, a task may run with, of at most so many.

    With `n` attempts left a batch is to be narrowed down to one task in `n` steps. Steps that each divide it alike need
    the fewest passes in all, so after a crash it is divided by the `n`th root of its size.
    """
    if task.crashes == 0:
        return most
    left = max(1, task.submitted.retry.max_attempts - task.failures)
    return max(1, math.floor(most ** (1 - 1 / left) + ROUNDING))


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
