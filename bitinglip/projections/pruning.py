"""Pruning: now and then what is old leaves the tables, as each projection's file says; the writer is held meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from bitinglip.events import model, node, schedule, task, worker
from bitinglip.events.ending import end
from bitinglip.events.registry import REGISTRY
from bitinglip.projections import coldevents, versions
from bitinglip.projections.database import Database, WriteError
from bitinglip.projections.projector import Projector

log = logging.getLogger(__name__)

EVERY_S = 60.0
CANCEL_AGAIN_S = 5.0
DECLARING = (model, node, schedule, task, worker)
"""Modules that have types of ticks: the registry knows those that are imported."""
EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  (the tables' times are UTC, and do not say so)


class Pruner:
    """Prunes what serves in one file. `clock` tells the time of the log."""

    def __init__(
        self, database: Database, projector: Projector, clock: Callable[[], datetime], keep_ticks_s: float
    ) -> None:
        self._live = database
        self._cursor = database.cursor()
        self._projector = projector
        self._clock = clock
        self._keep_ticks = timedelta(seconds=keep_ticks_s)
        self._since: dict[str, datetime] = {}
        """By schema: up to where it is pruned."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background, once the live writer has caught up."""
        self._task = asyncio.create_task(self._run(), name="pruner")

    async def stop(self) -> None:
        """End after the transaction that runs."""
        await end(lambda: [self._task], CANCEL_AGAIN_S)
        await asyncio.to_thread(self._cursor.close)

    async def prune(self) -> None:
        """Prune every projection that serves, each in a transaction of its own."""
        now = self._clock().astimezone(UTC).replace(tzinfo=None)
        await self._while_nothing_is_written(lambda: self._prune(now))

    async def drop_archived(self, stream: str, up_to: int) -> None:
        """Let a stream's events up to a sequence be read from the archive, and drop them here."""
        await self._while_nothing_is_written(lambda: self._drop(stream, up_to))

    def _drop(self, stream: str, up_to: int) -> None:
        homes = [version.home for version in versions.read(self._cursor) if version.name == coldevents.EVENTS]
        coldevents.drop(self._cursor, homes, stream, up_to)

    async def _while_nothing_is_written(self, work: Callable[[], None]) -> None:
        async with self._projector.writing:
            pruning = asyncio.ensure_future(asyncio.to_thread(work))
            try:
                await asyncio.shield(pruning)
            except asyncio.CancelledError:
                await asyncio.wait([pruning])
                raise

    async def _run(self) -> None:
        await self._projector.caught_up.wait()
        while True:
            try:
                await self.prune()
            except WriteError:
                log.exception("the read model could not be pruned")
            await asyncio.sleep(EVERY_S)

    def _prune(self, now: datetime) -> None:
        before = now - self._keep_ticks
        ticks = [name for name, cls in REGISTRY.items() if not cls.lasting]
        for version in self._live.served:
            if (block := version.projection.prune(version.home)) is not None:
                since = self._since.get(version.home, EPOCH)
                with self._cursor.transaction():
                    self._cursor.run(block, {"now": now, "before": before, "since": since, "ticks": ticks})
                self._since[version.home] = before
