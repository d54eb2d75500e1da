"""Versions of projections that are behind, brought up to a sequence by the log."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from bitinglip.events.envelope import Messages
from bitinglip.projections.database import Build
from bitinglip.projections.source import Source, read_up_to
from bitinglip.projections.writer import write_prompt

BATCH_MOST_BYTES = 16 * 2**20
"""Bytes of payload in one transaction: DuckDB holds several times as much while it takes the fields out."""
Do = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs work on the thread that the cursor belongs to."""


async def catch_up(build: Build, source: Source, targets: Mapping[str, int], most: int, do: Do) -> None:
    """Apply to versions what they lack of each stream up to its target, so many events in a transaction.

    Raises:
        NoServer: the log cannot be asked; what is applied stays.
        WriteError: the database could not be written.
    """
    done = await do(build.checkpoints)
    for stream in build.streams:
        async with aclosing(read_up_to(source, stream, done[stream][0], targets[stream])) as batches:
            async for gathered in _gathered(batches, most):
                await do(lambda stream=stream, gathered=gathered: write_prompt(build, stream, *gathered))


async def _gathered(batches: AsyncIterable[Messages], most: int) -> AsyncGenerator[list[Messages], None]:
    """Put batches together until they are worth a transaction."""
    gathered: list[Messages] = []
    async for batch in batches:
        gathered.append(batch)
        if sum(map(len, gathered)) >= most or sum(each.size_bytes for each in gathered) >= BATCH_MOST_BYTES:
            yield gathered
            gathered = []
    if gathered:
        yield gathered
