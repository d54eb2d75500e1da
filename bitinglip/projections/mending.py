"""Mending a read model that breaks while it serves: one thing at a time, in the background, until it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from bitinglip.errors import NoServer, ProjectionFileRefused, RebuildFailed
from bitinglip.projections.database import StoppedError, WriteError
from bitinglip.projections.opening import is_damaged

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds between two tries, while the log is away or the disk is full."""


class Mender:
    """Looks at errors, and mends what they tell of."""

    def __init__(self, make_anew: Callable[[], Awaitable[None]], open_again: Callable[[], Awaitable[None]]) -> None:
        self.task: asyncio.Task[None] | None = None
        self._make_anew = make_anew
        self._open_again = open_again

    @property
    def busy(self) -> bool:
        """Whether something is being mended."""
        return self.task is not None and not self.task.done()

    def look_at(self, error: BaseException) -> bool:
        """Tell whether an error says that the file is broken, or its database has stopped; then it is mended."""
        if is_damaged(error):
            self._begin("the read model's file is damaged, and made anew from the log", error, self._make_anew)
            return True
        if isinstance(error, StoppedError):
            self._begin("the read model's database has stopped, and is opened again", error, self._open_again)
            return True
        return False

    def _begin(self, told: str, error: BaseException, mend: Callable[[], Awaitable[None]]) -> None:
        if not self.busy:
            log.error("%s: %s", told, error)
            self.task = asyncio.create_task(self._until_done(mend), name="mending")

    async def _until_done(self, mend: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await mend()
            except (NoServer, ProjectionFileRefused, RebuildFailed, WriteError, OSError) as error:
                log.warning("the read model cannot be mended yet: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                return
