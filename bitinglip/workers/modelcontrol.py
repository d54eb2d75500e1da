"""What a node can be asked about its models: what they take on its disk, and to drop what is of no use any more."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

from bitinglip.errors import CommandRefused
from bitinglip.events.log import Clock
from bitinglip.events.service import Command
from bitinglip.models import snapshots
from bitinglip.models.eviction import Stored
from bitinglip.models.sharing import COMMAND
from bitinglip.models.state import Key
from bitinglip.workers.modelkeeper import ModelKeeper

IDLE_DAYS = 30.0
"""What was not used for so long is of no use any more, if nothing else is said."""


class ModelControl:
    """Takes these commands."""

    def __init__(self, keeper: ModelKeeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock

    def commands(self) -> dict[str, Command]:
        """Return the commands by their names."""
        return {"du": self.du, "prune": self.prune, COMMAND: self.share}

    async def share(self, body: dict[str, Any]) -> dict[str, Any]:
        """Tell another node where it gets the files of a revision from here."""
        if not self._keeper.shares:
            raise CommandRefused(problem="it hands out no models (`models.share`)")
        return await self._keeper.sharing.offer(body)

    async def du(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return what models take on the node's disk, and which ones these are."""
        disk = self._keeper.disk
        usage = await asyncio.to_thread(snapshots.du, disk.cache_dir)
        stored = await self._keeper.stored()
        return {
            "marked_bytes": usage.marked_bytes,
            "other_bytes": usage.other_bytes,
            "partial_bytes": usage.partial_bytes,
            "free_bytes": usage.free_bytes,
            "budget_bytes": disk.room.budget_bytes,
            "min_free_bytes": disk.room.min_free_bytes,
            "models": [_told(each) for each in stored],
        }

    async def prune(self, body: dict[str, Any]) -> dict[str, Any]:
        """Drop what was not used for some days, but for what is pinned, in memory, or needed by other models.

        `idle_days`: for how long (30); `dry_run`: only tell what would go (true).
        """
        idle_days, dry_run = body.get("idle_days", IDLE_DAYS), body.get("dry_run", True)
        if not isinstance(idle_days, int | float) or idle_days < 0 or not isinstance(dry_run, bool):
            raise CommandRefused(problem="`idle_days` is a number of days, and `dry_run` true or false")
        before = self._clock() - timedelta(days=idle_days)
        idle = [each for each in await self._keeper.stored() if _may_go(each, before)]
        gone = idle if dry_run else [each for each in idle if await self._keeper.evict(_key(each))]
        return {"dry_run": dry_run, "dropped": [_told(each) for each in gone]}


def _may_go(stored: Stored, before: datetime) -> bool:
    return stored.may_go and stored.last_used <= before


def _key(stored: Stored) -> Key:
    return stored.reference, stored.revision


def _told(stored: Stored) -> dict[str, Any]:
    return {
        "reference": stored.reference,
        "revision": stored.revision,
        "size_bytes": stored.size_bytes,
        "last_used": stored.last_used.isoformat(),
        "pinned": stored.pinned,
        "in_use": stored.in_use,
    }
