"""Where a projector reads: a stream's events from any sequence on. The log alone, or the archive and then the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from bitinglip.events.cold import history
from bitinglip.events.ending import end
from bitinglip.events.envelope import Messages
from bitinglip.events.log import EventLog
from bitinglip.events.reading import end_of

IDLE_S = 2.0
"""Seconds without an event after which it is asked again how far a stream goes: its last event may be gone."""
READ_AHEAD = 2
"""Batches that are read while one is applied."""


class Source(Protocol):
    """Where events are read."""

    def read(self, stream: str, after: int) -> AsyncGenerator[Messages, None]:
        """Yield a stream's events after a sequence, in order, without gap or repeat; never ends."""
        ...

    async def last(self, stream: str) -> int:
        """Return the sequence of the last event that `read` would yield now; 0 if there is none.

        Raises:
            NoServer: the log cannot be asked.
        """
        ...


class LogSource:
    """The log, and before it what has left it for the archive, if this process reads that."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    def read(self, stream: str, after: int) -> AsyncGenerator[Messages, None]:
        """Yield a stream's events after a sequence; see `Source`."""
        return history(self._log, stream, after)

    async def last(self, stream: str) -> int:
        """Return the sequence of the last event in a stream; see `Source`."""
        return await end_of(self._log, stream)


async def read_up_to(source: Source, stream: str, after: int, target: int) -> AsyncGenerator[Messages, None]:
    """Yield a stream's events after a sequence, up to and with another one, and end.

    The target need not exist any more: what is behind it, or the end of the stream, says that all before it was read.

    Raises:
        NoServer: the log cannot be asked.
    """
    if min(target, await source.last(stream)) <= after:
        return
    waiting: asyncio.Queue[Messages] = asyncio.Queue(READ_AHEAD)
    reading = asyncio.create_task(_read(source, stream, after, waiting), name=f"read {stream}")
    try:
        while after < min(target, await source.last(stream)):
            batch = await _next(waiting, reading)
            if batch is not None:
                after = batch.sequences[-1]
                if chosen := _up_to(batch, target):
                    yield chosen
    finally:
        await end(lambda: [reading])


async def _read(source: Source, stream: str, after: int, waiting: asyncio.Queue[Messages]) -> None:
    async with aclosing(source.read(stream, after)) as batches:
        async for batch in batches:
            await waiting.put(batch)


async def _next(waiting: asyncio.Queue[Messages], reading: asyncio.Task[None]) -> Messages | None:
    """Return the next batch; none if none comes for a while."""
    if reading.done():
        reading.result()
    try:
        async with asyncio.timeout(IDLE_S):
            return await waiting.get()
    except TimeoutError:
        return None


def _up_to(batch: Messages, target: int) -> Messages:
    if batch.sequences[-1] <= target:
        return batch
    return batch[: sum(sequence <= target for sequence in batch.sequences)]
