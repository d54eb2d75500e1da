"""When snapshots are made: after so many events, whoever made the last one; and when somebody asks."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from bitinglip.errors import BitingLipError
from bitinglip.events.ending import end
from bitinglip.events.ledger import LedgerSnapshot
from bitinglip.projections import snapshot
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database, WriteError
from bitinglip.projections.ground import Ground
from bitinglip.projections.projector import Projector
from bitinglip.projections.sql import STREAMS

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Seconds between two looks whether one is due."""
CANCEL_AGAIN_S = 5.0


class Snapshots:
    """Makes snapshots of one open file."""

    def __init__(
        self, database: Database, path: Path, projector: Projector, checkpoints: Checkpoints, ground: Ground
    ) -> None:
        self._database = database
        self._path = path
        self._projector = projector
        self._checkpoints = checkpoints
        self._ground = ground
        self._making: asyncio.Task[LedgerSnapshot] | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look now and then whether one is due."""
        self._task = asyncio.create_task(self._run(), name="snapshots")

    async def stop(self) -> None:
        """Give up one that is being made."""
        await end(lambda: [self._task, self._making], CANCEL_AGAIN_S)

    async def make(self) -> LedgerSnapshot:
        """Make one now; one that is being made is joined.

        Raises:
            ProjectionBuilding: a projection is being made anew.
            Conflict: another gateway has made one meanwhile.
            NoServer: the log did not take it.
        """
        if self._making is None or self._making.done():
            making = snapshot.make(self._database, self._path, self._ground)
            self._making = asyncio.create_task(making, name="snapshot")
        return await asyncio.shield(self._making)

    async def make_if_due(self) -> LedgerSnapshot | None:
        """Make one if enough events came since the last; none if that is not so.

        Raises:
            ProjectionBuilding, Conflict, NoServer: see `make`.
        """
        applied = [self._checkpoints.applied(stream) for stream in STREAMS]
        return await self.make() if await snapshot.is_due(self._ground, applied) else None

    async def _run(self) -> None:
        await self._projector.caught_up.wait()
        while True:
            try:
                await self.make_if_due()
            except (BitingLipError, WriteError, OSError) as error:
                log.warning("no snapshot of the read model could be made: %s", error)
            await asyncio.sleep(LOOK_S)
