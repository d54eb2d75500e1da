"""The rebuild: a new file beside the old one, filled from the log while the old one serves, then put in its place.

A crash at any point leaves the old file as it was; what was begun is swept at the next start.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from bitinglip.projections.background import background_thread
from bitinglip.projections.database import Database
from bitinglip.projections.generation import open_bulk
from bitinglip.projections.ground import Ground
from bitinglip.projections.opening import discard

SUFFIX = ".rebuild"
Swap = Callable[[Callable[[], None]], Awaitable[None]]
"""Closes the old file, calls what it is given, and opens what is then in the old one's place."""


def beside(path: Path) -> Path:
    """Return where the new file is made."""
    return path.with_name(path.name + SUFFIX)


def sweep(path: Path) -> None:
    """Remove what a rebuild that did not end has left."""
    discard(beside(path))


async def rebuild(path: Path, ground: Ground, swap: Swap) -> None:
    """Fill a new file from the log, and have it put in the place of the old one once it has caught up.

    Raises:
        NoServer: the log cannot be asked; the old file serves on.
    """
    await asyncio.to_thread(sweep, path)
    generation = await open_bulk(beside(path), ground)
    try:
        await generation.projector.wait_caught_up()
        await generation.projector.stop()
        await _fold(generation.database, ground.settings.threads)
    except BaseException:
        await generation.close(fold=False)
        await asyncio.to_thread(sweep, path)
        raise
    await generation.close(fold=False)
    await swap(partial(_put_in_place, path))


async def _fold(database: Database, threads: int) -> None:
    thread = background_thread("fold")
    try:
        await asyncio.get_running_loop().run_in_executor(thread, database.fold, threads)
    finally:
        thread.shutdown(wait=False)


def _put_in_place(path: Path) -> None:
    """Replace the old file by the new one; what of it was not folded when it was closed is not the new one's."""
    for leftover in path.parent.glob(f"{path.name}.wal*"):
        leftover.unlink()
    os.replace(beside(path), path)
