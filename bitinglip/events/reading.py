"""What a stream has up to its present end, read once: from the archive what has left the server, then from there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing

from bitinglip.events.archive import trimmed_to
from bitinglip.events.cold import skips
from bitinglip.events.direct import get_last
from bitinglip.events.ending import end as end_all
from bitinglip.events.envelope import Messages
from bitinglip.events.log import STREAM_FILTERS, EventLog

QUIET_S = 1.0
"""After so long without a message it is looked whether the end is still there: ticks expire."""


async def end_of(log: EventLog, stream: str, filters: Seq[str] = ()) -> int:
    """Return the sequence of the last event of a stream or its archive, no events (timers) left out; 0 without one.

    If the connection knows of an archive (`cold`), it is at least that up to which events have left the server.

    Raises:
        NoServer: the log cannot be asked.
    """
    found = [await get_last(log.connection, stream, subject) for subject in filters or STREAM_FILTERS[stream]]
    last = max((message.sequence for message in found if message is not None), default=0)
    return max(last, await trimmed_to(log.connection, stream))


async def read_between(
    log: EventLog, stream: str, after: int, end: int, most: int = 1_000, filters: Seq[str] = (), *, held: bool = False
) -> AsyncGenerator[Messages, None]:
    """Yield the events of a stream after a sequence, up to another one, which is included; `most` at a time.

    What has left the server is in it, if the connection knows of an archive (`cold`), and it is not `held`: only what
    the server still has.

    Raises:
        NoServer: the log cannot be asked.
        ArchiveDamaged: a file of the archive is not what it should be.
    """
    cold = None if held else log.connection.cold
    while after < end:
        gone = 0 if cold is None else min(end, await trimmed_to(log.connection, stream))
        reading = _held(log, stream, after, end, most, filters, leaving=cold is not None)
        if cold is not None and gone > after:
            reading = cold.messages(stream, after, gone, filters, most)
        async with aclosing(reading) as batches:
            async for batch in batches:
                after = batch.sequences[-1]
                yield batch
        after = max(after, gone)
        left = cold is not None and await trimmed_to(log.connection, stream) > after
        if not left and not await _more(log, stream, after, end, filters):
            return


async def _held(
    log: EventLog, stream: str, after: int, end: int, most: int, filters: Seq[str], *, leaving: bool
) -> AsyncGenerator[Messages, None]:
    """Yield what the server has up to an end; `leaving`: and end before what left it meanwhile."""
    coming: asyncio.Future[Messages] | None = None
    async with aclosing(log.tail(stream, after, most=most, filters=filters)) as batches:
        try:
            while after < end:
                coming = coming or asyncio.ensure_future(anext(batches))
                await asyncio.wait((coming,), timeout=QUIET_S)
                if not coming.done():
                    if await _more(log, stream, after, end, filters):
                        continue
                    return
                batch, coming = coming.result(), None
                if leaving and skips(batch, after) and await trimmed_to(log.connection, stream) > after:
                    return
                after = batch.sequences[-1]
                if wanted := _up_to(batch, end):
                    yield wanted
        finally:
            await end_all(lambda: [coming])


async def _more(log: EventLog, stream: str, after: int, end: int, filters: Seq[str]) -> bool:
    """Tell whether the server has an event after a sequence, up to another one."""
    return any(message.sequence <= end for message in await log.first_after(stream, after, filters))


def _up_to(batch: Messages, end: int) -> Messages:
    return batch if batch.sequences[-1] <= end else Messages.of(each for each in batch if each.sequence <= end)
