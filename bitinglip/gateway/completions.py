"""Watches for batches whose last task has ended, and says so in the log.

Every gateway watches, by its own read model: whichever sees it first is heard, since the event expects the batch's
last sequence. A gateway that dies leaves nothing behind that another one, or a later one, would not see.
"""

from __future__ import annotations

import asyncio
import logging

from bitinglip.errors import BitingLipError
from bitinglip.events.ending import end
from bitinglip.events.streams import TASKS
from bitinglip.projections.readmodel import ReadModel
from bitinglip.tasks.batches import Batches

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Time between two looks; there is nothing to look at while no event comes."""


class Completions:
    """One gateway's watch."""

    def __init__(self, readmodel: ReadModel, batches: Batches) -> None:
        self._readmodel = readmodel
        self._batches = batches
        self._seen = -1
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._watching = asyncio.create_task(self._watch(), name="completions")

    async def close(self) -> None:
        """End; other gateways, and later ones, watch on."""
        await end(lambda: [self._watching])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            applied = self._readmodel.applied(TASKS)
            if applied != self._seen:
                try:
                    await self._look()
                except BitingLipError as error:
                    log.debug("batches are looked at later: %s", error)
                else:
                    self._seen = applied

    async def _look(self) -> None:
        for batch_id, last, tasks, counts in await self._readmodel.queries.batches_over():
            await self._batches.complete(batch_id, last, tasks, counts)
