"""What MODELS says of models, followed by a node's agent, and what the agent adds to it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from bitinglip.errors import CorruptEvent, NoServer, ProjectionBehind
from bitinglip.events import subjects
from bitinglip.events.ending import end
from bitinglip.events.envelope import Messages, decode
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelEvent, ModelFetchProgressed
from bitinglip.events.streams import MODELS
from bitinglip.models.state import Models, evolve

log = logging.getLogger("bitinglip.node")

CATCH_UP_S = 30.0
RETRY_S = 1.0


class Wishes:
    """All that is known of models, up to the last event."""

    def __init__(self, event_log: EventLog, changed: Callable[[], None]) -> None:
        """`changed` is called when something is known that was not before."""
        self._log = event_log
        self._changed = changed
        self._applied = 0
        self._moved = asyncio.Condition()
        self._follower: asyncio.Task[None] | None = None
        self.models = Models()

    async def open(self) -> None:
        """Read what the log knows by now, and follow it from there.

        Raises:
            NoServer: the log cannot be read.
            ProjectionBehind: it is not read in time.
        """
        self._follower = asyncio.create_task(self._follow(), name="models")
        last = await self._log.read_last(MODELS, subjects.MODELS)
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._reach(last.sequence if last else 0)
        except TimeoutError as error:
            raise ProjectionBehind(sequence=last.sequence if last else 0, applied=self._applied) from error

    async def close(self) -> None:
        """Stop following the log."""
        await end(lambda: [self._follower])

    async def tell(self, event: ModelEvent) -> None:
        """Put a fact into the log, however long the server is away; afterwards it is known here as well."""
        append = self._log.fact_append(event, _subject(event), event.reference)
        while True:
            try:
                sequence = await self._log.append(append)
                break
            except NoServer as error:
                log.debug("%s is not in the log yet: %s", event.type, error)
                await asyncio.sleep(RETRY_S)
        await self._reach(sequence)

    async def mention(self, event: ModelEvent, ttl_s: int) -> None:
        """Put something into the log that leaves it again, and is not missed if the server is away."""
        try:
            await self._log.append(self._log.fact_append(event, _subject(event), event.reference, ttl_s=ttl_s))
        except NoServer as error:
            log.debug("not told: %s", error)

    async def _reach(self, sequence: int) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._applied >= sequence)

    async def _follow(self) -> None:
        async with aclosing(self._log.tail(MODELS, 0)) as batches:
            async for batch in batches:
                await self._apply(batch)

    async def _apply(self, batch: Messages) -> None:
        news = False
        for message in batch:
            try:
                recorded = decode(message, MODELS)
            except CorruptEvent as error:
                log.error("passed over: %s", error)  # noqa: TRY400  (the message says where)
                continue
            if isinstance(recorded.event, ModelEvent):
                self.models = evolve(self.models, recorded.event, recorded.time, recorded.sequence)
                news = news or not isinstance(recorded.event, ModelFetchProgressed)
        async with self._moved:
            self._applied = batch[-1].sequence
            self._moved.notify_all()
        if news:
            self._changed()


def _subject(event: ModelEvent) -> str:
    return subjects.model_subject(event.reference, event.type.removeprefix("model."))
