"""Room on a node's disk for models that are to come: what was not used for the longest makes it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from bitinglip.errors import ModelInUse, NoRoom
from bitinglip.events.log import Clock
from bitinglip.events.model import ModelDropped
from bitinglip.models.eviction import Stored
from bitinglip.models.state import Key
from bitinglip.workers.modeldisk import ModelDisk
from bitinglip.workers.modelwishes import Wishes

log = logging.getLogger("bitinglip.node")

Coming = Callable[[], tuple[int, int]]
"""Bytes that all fetches together have yet to bring, and those that they have brought."""


class ModelRoom:
    """Makes room, and tells the log what had to go."""

    def __init__(
        self, clock: Clock, node_id: str, wishes: Wishes, disk: ModelDisk, changed: Callable[[], None]
    ) -> None:
        """`changed` is called whenever a model has gone."""
        self._clock = clock
        self._changed = changed
        self._node_id = node_id
        self._wishes = wishes
        self._disk = disk
        self._making = asyncio.Lock()

    async def make(self, reference: str, coming: Coming) -> None:
        """Drop what must go for all that is coming, a model of this name among it.

        Raises:
            NoRoom: there is no way.
        """
        async with self._making:
            passed_over = set[Key]()
            while key := await self._next(reference, coming, passed_over):
                if not await self.evict(key):
                    passed_over.add(key)

    async def stored(self, passed_over: Collection[Key] = ()) -> list[Stored]:
        """Return what is on the disk, and what of it may go; what is passed over counts as in use."""
        models = self._wishes.models.revisions
        pinned = {key for key, each in models.items() if each.on(self._node_id).pinned}
        return await asyncio.to_thread(self._disk.stored, pinned, {*passed_over, *self._parts()})

    async def evict(self, key: Key) -> bool:
        """Drop a revision, unless somebody has it in memory; tells whether it is gone."""
        try:
            freed = await asyncio.to_thread(self._disk.drop, key)
        except ModelInUse:
            return False
        self._changed()
        log.info("%s at %s makes room: %d bytes", *key, freed)
        reference, revision = key
        await self._wishes.tell(
            ModelDropped(
                reference=reference, revision=revision, node_id=self._node_id, freed_bytes=freed, reason="evicted"
            )
        )
        return True

    async def _next(self, reference: str, coming: Coming, passed_over: set[Key]) -> Key | None:
        needed, brought = coming()
        if not needed:
            return None
        stored = await self.stored(passed_over)
        found = await asyncio.to_thread(self._disk.evictions, stored, needed, brought, self._clock())
        if found.refused:
            raise NoRoom(reference=reference, needed_bytes=needed, missing_bytes=found.missing_bytes)
        return next(((each.reference, each.revision) for each in found.drop), None)

    def _parts(self) -> set[Key]:
        """Return the revisions of models that others of this node need beside them."""
        here = [each for each in self._wishes.models.revisions.values() if each.on(self._node_id).status != "absent"]
        names = {name for each in here if each.described for name in each.described.parts.values()}
        return {(each.reference, each.revision) for each in here if each.reference in names}
