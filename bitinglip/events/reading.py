"""What a stream holds up to its present end, read once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing, suppress

from bitinglip.events.direct import get_last
from bitinglip.events.envelope import Messages
from bitinglip.events.log import STREAM_FILTERS, EventLog

QUIET_S = 3.0
"""After so long without a message it is looked whether the end is still there: ticks expire."""


async def end_of(log: EventLog, stream: str, filters: Seq[str] = ()) -> int:
    """Return the sequence of the last event in a stream, what are no events (timers) left out; 0 if there is none.

    Raises:
        NoServer: the log cannot be asked.
    """
    found = [await get_last(log.connection, stream, subject) for subject in filters or STREAM_FILTERS[stream]]
    return max((message.sequence for message in found if message is not None), default=0)


async def read_between(
    log: EventLog, stream: str, after: int, end: int, most: int = 1_000, filters: Seq[str] = ()
) -> AsyncGenerator[Messages, None]:
    """Yield the events of a stream after a sequence, up to another one, which is included; `most` at a time.

    Raises:
        NoServer: the log cannot be asked.
    """
    while after < end:
        async with aclosing(log.tail(stream, after, most=most, filters=filters)) as batches:
            with suppress(TimeoutError):
                while after < end:
                    async with asyncio.timeout(QUIET_S):
                        batch = await anext(batches)
                    after = batch.sequences[-1]
                    yield _up_to(batch, end)
        if after < end:
            end = min(end, await end_of(log, stream, filters))


def _up_to(batch: Messages, end: int) -> Messages:
    return batch if batch.sequences[-1] <= end else Messages.of(each for each in batch if each.sequence <= end)
