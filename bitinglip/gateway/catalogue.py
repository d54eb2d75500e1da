"""The models that can be asked for: a fold over the MODELS stream, kept in memory."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress

from bitinglip.errors import CorruptEvent, ProjectionBehind, UnknownModel
from bitinglip.events import subjects
from bitinglip.events.envelope import Messages, decode
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelRegistered
from bitinglip.events.streams import MODELS

log = logging.getLogger(__name__)

CATCH_UP_S = 5.0


class Catalogue:
    """Every model that a worker has registered, by reference and kind."""

    def __init__(self, event_log: EventLog) -> None:
        self._log = event_log
        self._models: dict[tuple[str, str], ModelRegistered] = {}
        self._applied = 0
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
            await catalogue._catch_up()
        except BaseException:
            await catalogue.close()
            raise
        return catalogue

    async def close(self) -> None:
        """Stop following the log."""
        if self._follower is not None:
            self._follower.cancel()
            with suppress(asyncio.CancelledError):
                await self._follower

    async def require(self, reference: str, kind: str) -> None:
        """Refuse a model that no worker has registered for this kind; the log is asked before a model is refused.

        Raises:
            UnknownModel: no worker ever registered it.
            NoServer: it is not known here, and the log cannot be asked.
        """
        if (reference, kind) in self._models:
            return
        await self._catch_up()
        if (reference, kind) not in self._models:
            known = ", ".join(sorted(name for name, served in self._models if served == kind)) or "nothing yet"
            raise UnknownModel(model=reference, kind=kind, known=known)

    async def knows(self, reference: str) -> bool:
        """Tell whether any worker has registered it, for whatever kind.

        Raises:
            NoServer: it is not known here, and the log cannot be asked.
        """
        if not any(name == reference for name, _ in self._models):
            await self._catch_up()
        return any(name == reference for name, _ in self._models)

    async def _catch_up(self) -> None:
        last = await self._log.read_last(MODELS, subjects.MODELS)
        if last is None:
            return
        try:
            async with asyncio.timeout(CATCH_UP_S), self._moved:
                await self._moved.wait_for(lambda: self._applied >= last.sequence)
        except TimeoutError as error:
            raise ProjectionBehind(sequence=last.sequence, applied=self._applied) from error

    async def _follow(self) -> None:
        async with aclosing(self._log.tail(MODELS, 0)) as batches:
            async for batch in batches:
                await self._apply(batch)

    async def _apply(self, batch: Messages) -> None:
        for message in batch:
            try:
                event = decode(message, MODELS).event
            except CorruptEvent as error:
                log.error("passed over: %s", error)  # noqa: TRY400  (the message says where)
                continue
            if isinstance(event, ModelRegistered):
                self._models[event.reference, event.kind] = event
        async with self._moved:
            self._applied = batch[-1].sequence
            self._moved.notify_all()
