"""The end of what runs in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

CANCEL_AGAIN_S = 0.5
CLEANING_S = 5.0
"""For what cleans up when it is cancelled: to ask again sooner would cut that short."""


async def end(tasks: Callable[[], Iterable[asyncio.Future[Any] | None]], patience_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel tasks until they have ended.

    Once may not do: before Python 3.12 `asyncio.wait_for`, in nats-py as well, may swallow a cancellation that comes
    with the answer, and the task goes on. `tasks` is asked each time anew: there may be others by then.
    """
    while alive := [task for task in tasks() if task is not None and not task.done()]:
        for task in alive:
            task.cancel()
        await asyncio.wait(alive, timeout=patience_s)
