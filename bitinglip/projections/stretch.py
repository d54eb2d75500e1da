"""A bounded stretch of a stream, as the server has it now."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing, suppress

from bitinglip.events.envelope import Messages
from bitinglip.events.log import EventLog

QUIET_S = 1.0
"""After so long without an event it is looked whether the end is still there: ticks leave by themselves."""


async def read_range(
    log: EventLog, stream: str, after: int, until: int, filters: Seq[str] = ()
) -> AsyncGenerator[Messages, None]:
    """Yield what the server has of a stream after a sequence, up to another one, in order; then it ends.

    Raises:
        NoServer: the log cannot be asked.
    """
    async with aclosing(log.tail(stream, after, filters=filters)) as batches:
        coming: asyncio.Future[Messages] | None = None
        try:
            while after < until:
                coming = coming or asyncio.ensure_future(anext(batches))
                await asyncio.wait((coming,), timeout=QUIET_S)
                if not coming.done():
                    if not any(m.sequence <= until for m in await log.first_after(stream, after, filters)):
                        return
                    continue
                batch, coming = coming.result(), None
                after = batch.sequences[-1]
                if wanted := _up_to(batch, until):
                    yield wanted
        finally:
            if coming is not None:
                coming.cancel()
                with suppress(asyncio.CancelledError):
                    await coming


def _up_to(batch: Messages, until: int) -> Messages:
    return batch if batch.sequences[-1] <= until else Messages.of(each for each in batch if each.sequence <= until)
