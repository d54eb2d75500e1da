"""What has left the server and lies in the archive, as readers of the log meet it: a task's history, a stream's.

Who knows how to read the archive hangs it on the connection (`connection.cold`); without that, the log alone is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from bitinglip.errors import ArchiveDamaged, NoServer
from bitinglip.events import subjects
from bitinglip.events.archive import trimmed_to
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId

if TYPE_CHECKING:
    from collections.abc import Sequence as Seq

    from bitinglip.events.connection import Connection
    from bitinglip.events.log import EventLog

logger = logging.getLogger(__name__)

BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
_END = 2**63


class Cold(Protocol):
    """Reads the archive."""

    def messages(
        self, stream: str, after: int, up_to: int, filters: Seq[str], most: int
    ) -> AsyncGenerator[Messages, None]:
        """Yield a stream's archived messages after a sequence, up to another one, in order."""
        ...

    async def task(self, task_id: TaskId) -> list[RawMessage]:
        """Return the archived events of a task; none if it is not known."""
        ...

    async def knows(self, task_id: TaskId) -> bool:
        """Tell whether there is such a task, if it may have left the server."""
        ...


async def task_messages(connection: Connection, task_id: TaskId, after: int = 0) -> list[RawMessage]:
    """Return a task's events after a sequence, in order, from the server or else from the archive.

    Raises:
        NoServer: the server does not answer.
    """
    found = await get_after(connection, TASKS, subjects.task_events(task_id), after)
    if connection.cold is None or (found and (after or _begins(found[0]))):
        return found
    until = found[0].sequence if found else _END
    cold = [message for message in await connection.cold.task(task_id) if after < message.sequence < until]
    return cold + found


async def history(
    log: EventLog, stream: str, after: int, *, filters: Seq[str] = (), most: int = 4_096
) -> AsyncGenerator[Messages, None]:
    """Yield a stream's messages after a sequence, in order: what has left the server from the archive, then the tail.

    What leaves the server while it is read is not missed: it is announced before (`ledger.trimmed`), and looked up
    wherever sequences are missing, and in quiet moments: what has left may have been the last. It waits for more, and
    for whatever does not answer, and never ends: close it.
    """
    failures = 0
    while True:
        try:
            async with aclosing(_up_to_a_gap(log, stream, after, filters, most)) as batches:
                async for batch in batches:
                    failures, after = 0, batch.sequences[-1]
                    yield batch
        except (NoServer, ArchiveDamaged, OSError) as error:
            logger.warning("the history of %s waits at %d: %s", stream, after, error)
            await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1


async def _up_to_a_gap(
    log: EventLog, stream: str, after: int, filters: Seq[str], most: int
) -> AsyncGenerator[Messages, None]:
    """Yield what the archive has and what the tail brings, until the tail lacks what has left the server meanwhile."""
    cold = log.connection.cold
    gone = 0 if cold is None else await trimmed_to(log.connection, stream)
    if cold is not None and gone > after:
        async with aclosing(cold.messages(stream, after, gone, filters, most)) as archived:
            async for batch in archived:
                yield batch
        after = gone

    async def has_left(last: int) -> bool:
        """Tell whether anything after the last that came may have left."""
        return await trimmed_to(log.connection, stream) > last

    over = has_left if cold is not None and stream == TASKS else None  # the only stream that is trimmed
    async with aclosing(log.tail(stream, after, filters=filters, most=most, over=over)) as batches:
        async for batch in batches:
            if cold is not None and skips(batch, after) and await trimmed_to(log.connection, stream) > after:
                return
            after = batch.sequences[-1]
            yield batch


def skips(batch: Messages, after: int) -> bool:
    """Tell whether sequences are missing, up to the batch's end."""
    return batch.sequences[-1] - after != len(batch)


def _begins(message: RawMessage) -> bool:
    return message.subject.split(".")[3] == "submitted"
