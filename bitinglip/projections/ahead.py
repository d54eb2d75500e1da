"""Taking events apart for the writer while it applies those before them: in a thread, and by a cursor, of its own.

It is a fifth of the work, and needs no table.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor

from bitinglip.events.envelope import Messages
from bitinglip.projections.batch import to_arrow
from bitinglip.projections.database import Database, Staged, WriteError


class Ahead:
    """Works for the writer of one database."""

    def __init__(self, database: Database) -> None:
        self._database, self._cursor = database, database.cursor()
        self._thread = ThreadPoolExecutor(1, "ahead")

    async def take_apart(self, stream: str, batches: Seq[Messages]) -> Staged | None:
        """Return the events ready to be applied; none if that cannot be: what is wrong is the writer's to find."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._take_apart, stream, batches)

    async def close(self) -> None:
        """End what it does, and close the cursor."""
        await asyncio.to_thread(self._thread.shutdown)
        self._cursor.close()

    def _take_apart(self, stream: str, batches: Seq[Messages]) -> Staged | None:
        try:
            return self._cursor.take_apart(stream, to_arrow(batches), self._database.stagings(stream))
        except (WriteError, ValueError):
            return None
