"""How far a fetch has come, told to the log now and then: what is told leaves it again."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bitinglip.events.model import ModelFetchProgressed
from bitinglip.models.protocol import Progress
from bitinglip.models.state import Key
from bitinglip.workers.modelwishes import Wishes

TICK_S = 0.5
"""Least time between two facts about one fetch."""
PACE_S = 5.0
"""Bytes a second are those of the last so many seconds."""


class Pace:
    """How many bytes come in a second, of late."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: float, done_bytes: int) -> float | None:
        """Take in how many have come by now, and return the pace; none: nothing comes, or too little is known."""
        self._seen.append((now, done_bytes))
        while len(self._seen) > 2 and now - self._seen[0][0] > PACE_S:
            self._seen.popleft()
        then, before = self._seen[0]
        return (done_bytes - before) / (now - then) if now > then and done_bytes > before else None


class FetchTicks:
    """Tells how far one fetch is."""

    def __init__(self, wishes: Wishes, node_id: str, key: Key, ttl_s: int) -> None:
        """`ttl_s`: how long what is told stays in the log."""
        self._wishes = wishes
        self._node_id = node_id
        self._key = key
        self._ttl_s = ttl_s
        self._latest: Progress | None = None
        self._moved = asyncio.Event()

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[Callable[[Progress], None]]:
        """Tell it, inside; gives what is to be called with the progress."""
        task = asyncio.create_task(self._run(), name="fetch-progress")
        try:
            yield self._hear
        finally:
            task.cancel()

    def _hear(self, progress: Progress) -> None:
        self._latest = progress
        self._moved.set()

    async def _run(self) -> None:
        pace = Pace()
        while True:
            await self._moved.wait()
            self._moved.clear()
            assert self._latest is not None
            tick = self._tick(self._latest, pace.of(time.monotonic(), self._latest.done_bytes))
            await self._wishes.mention(tick, self._ttl_s)
            await asyncio.sleep(TICK_S)

    def _tick(self, progress: Progress, pace: float | None) -> ModelFetchProgressed:
        reference, revision = self._key
        return ModelFetchProgressed(
            reference=reference,
            revision=revision,
            node_id=self._node_id,
            done_bytes=progress.done_bytes,
            total_bytes=progress.total_bytes,
            bytes_per_s=pace,
            left_s=(progress.total_bytes - progress.done_bytes) / pace if pace else None,
            step=progress.step,
        )
