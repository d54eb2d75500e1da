"""What a stream holds up to its present end, read once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing, suppress

from bitinglip.errors import NoServer
from bitinglip.events.archive import ARCHIVED, trimmed_to
from bitinglip.events.direct import get_last
from bitinglip.events.envelope import Messages
from bitinglip.events.log import STREAM_FILTERS, EventLog

QUIET_S = 5.0
"""After so long without a message it is looked whether the end is still there: ticks expire."""


async def end_of(log: EventLog, stream: str, filters: Seq[str] = ()) -> int:
    """Return the sequence of the last event in a stream, what are no events (timers) left out; 0 if there is none.

    If the connection knows of an archive (`cold`), it is at least that up to which events have left the server.

    Raises:
        NoServer: the log cannot be asked.
    """
    found = [await get_last(log.connection, stream, subject) for subject in filters or STREAM_FILTERS[stream]]
    gone = 0 if log.connection.cold is None else await _gone(log, stream, filters)
    return max([gone, *[message.sequence for message in found if message is not None]])


async def read_between(
    log: EventLog, stream: str, after: int, end: int, most: int = 1_000, filters: Seq[str] = ()
) -> AsyncGenerator[Messages, None]:
    """Yield the events of a stream after a sequence, up to another one, which is included; `most` at a time.

    What has left the server is in it, if the connection knows of an archive (`cold`).

    Raises:
        NoServer: the log cannot be asked, or events left the server while they were read.
        ArchiveDamaged: a file of the archive is not what it should be.
    """
    gone = await _gone(log, stream, filters)
    cold = log.connection.cold
    if cold is not None and gone > after:
        async with aclosing(cold.messages(stream, after, min(gone, end), filters, most)) as archived:
            async for batch in archived:
                yield batch
        after = gone
    begin = max(gone, after)
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
    if await _gone(log, stream, filters) > begin:
        raise NoServer(problem=f"events of {stream} left the server while they were read")


async def _gone(log: EventLog, stream: str, filters: Seq[str]) -> int:
    """Return the sequence up to which events may have left the server; 0 if none has, or it does not matter."""
    return await trimmed_to(log.connection, stream) if stream in ARCHIVED and not filters else 0


def _up_to(batch: Messages, end: int) -> Messages:
    return batch if batch.sequences[-1] <= end else Messages.of(each for each in batch if each.sequence <= end)
