"""What this gateway knows of models: the fold over the MODELS stream, followed as it grows."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from bitinglip.errors import CorruptEvent, ProjectionBehind
from bitinglip.events import subjects
from bitinglip.events.ending import end
from bitinglip.events.envelope import Messages, decode
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelEvent
from bitinglip.events.streams import MODELS
from bitinglip.gateway.knownmodels import KnownModels
from bitinglip.models.state import Revision

log = logging.getLogger(__name__)

CATCH_UP_S = 5.0


class Catalogue(KnownModels):
    """What is known of models by now."""

    def __init__(self, event_log: EventLog) -> None:
        super().__init__()
        self.turn = asyncio.Lock()
        """Held from reading what is known until what was decided on it is known too: wishes are written one by one."""
        self.asking: dict[str, asyncio.Task[Revision]] = {}
        """What the hub is asked for now, by reference."""
        self._log = event_log
        self.applied = 0
        """Sequence of the last event that is known."""
        self._moved = asyncio.Condition()
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, event_log: EventLog) -> Catalogue:
        """Read what the log knows by now, and follow it from there.

        Raises:
            NoServer: the log cannot be read.
        """
        catalogue = cls(event_log)
        catalogue._follower = asyncio.create_task(catalogue._follow(), name="catalogue")
        try:
            await catalogue.catch_up()
        except BaseException:
            await catalogue.close()
            raise
        return catalogue

    async def close(self) -> None:
        """Stop following the log."""
        await end(lambda: [self._follower])

    # --- what is known ------------------------------------------------------------------------------------------------

    async def knows(self, reference: str) -> bool:
        """Tell whether any worker has registered it, for whatever kind.

        Raises:
            NoServer: it is not known here, and the log cannot be asked.
        """
        if not self.is_served(reference):
            await self.catch_up()
        return self.is_served(reference)

    async def catch_up(self) -> None:
        """Wait until all is known that the log holds by now.

        Raises:
            NoServer: the log cannot be asked.
            ProjectionBehind: it takes too long.
        """
        last = await self._log.read_last(MODELS, subjects.MODELS)
        if last is not None:
            await self.reach(last.sequence)

    async def reach(self, sequence: int) -> None:
        """Wait until the event at this sequence is known.

        Raises:
            ProjectionBehind: it takes too long.
        """
        try:
            async with asyncio.timeout(CATCH_UP_S), self._moved:
                await self._moved.wait_for(lambda: self.applied >= sequence)
        except TimeoutError as error:
            raise ProjectionBehind(sequence=sequence, applied=self.applied) from error

    async def tell(self, event: ModelEvent) -> int:
        """Put a fact about a model into the log; when this returns, it is known here.

        Raises:
            NoServer, StreamFull: the log does not take it now.
            ProjectionBehind: it is in the log, and this gateway is slow to hear of it.
        """
        subject = subjects.model_subject(event.reference, event.type.removeprefix("model."))
        sequence = await self._log.append(self._log.fact_append(event, subject, event.reference))
        await self.reach(sequence)
        return sequence

    async def moved(self, after: int) -> int:
        """Wait until more is known than up to a sequence; returns up to which."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.applied > after)
            return self.applied

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with aclosing(self._log.tail(MODELS, 0)) as batches:
            async for batch in batches:
                await self._apply(batch)

    async def _apply(self, batch: Messages) -> None:
        for message in batch:
            try:
                recorded = decode(message, MODELS)
            except CorruptEvent as error:
                log.error("passed over: %s", error)  # noqa: TRY400  (the message says where)
                continue
            self.fold(recorded)
        async with self._moved:
            self.applied = batch[-1].sequence
            self._moved.notify_all()
