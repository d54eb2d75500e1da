"""How far each stream is applied, and waiting for it: how a reader reads its own writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count

from bitinglip.errors import ProjectionBehind

_Waiter = tuple[int, int, asyncio.Future[None]]


class Checkpoints:
    """The last applied sequence of each stream, as this process has committed it."""

    def __init__(self) -> None:
        self._applied: dict[str, int] = {}
        self._waiters: dict[str, list[_Waiter]] = {}
        self._tie = count()
        self._on_wait: Callable[[], None] | None = None

    def applied(self, stream: str) -> int:
        """Return the sequence of the last applied event; 0 before the first."""
        return self._applied.get(stream, 0)

    def advance(self, stream: str, sequence: int) -> None:
        """Say that all up to this sequence is committed, and wake who waited for it."""
        self._applied[stream] = sequence
        waiters = self._waiters.get(stream, [])
        while waiters and waiters[0][0] <= sequence:
            woken = heappop(waiters)[2]
            if not woken.done():
                woken.set_result(None)

    def awaited(self, stream: str) -> bool:
        """Tell whether somebody waits for this stream."""
        return any(not waiter[2].done() for waiter in self._waiters.get(stream, ()))

    @contextmanager
    def asked(self, on_wait: Callable[[], None]) -> Generator[None]:
        """Inside, call this whenever somebody begins to wait."""
        self._on_wait = on_wait
        try:
            yield
        finally:
            self._on_wait = None

    async def wait(self, stream: str, sequence: int, timeout_s: float) -> None:
        """Wait until the event at this sequence is applied.

        Raises:
            ProjectionBehind: it was not in time.
        """
        if self.applied(stream) >= sequence:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heappush(self._waiters.setdefault(stream, []), (sequence, next(self._tie), woken))
        if self._on_wait is not None:
            self._on_wait()
        try:
            async with asyncio.timeout(timeout_s):  # not `wait_for`: before 3.12 it may swallow a cancellation
                await woken
        except TimeoutError as error:
            raise ProjectionBehind(sequence=sequence, applied=self.applied(stream)) from error
