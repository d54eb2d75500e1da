"""The rebuild: a new file beside the old one, filled from the log while the old one serves, then put in its place.

A process of its own fills it (see `filling.py`): those who ask meanwhile notice little. A crash at any point, of
either, leaves the old file as it was; what was begun is swept at the next start.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from bitinglip.errors import NoServer, RebuildFailed
from bitinglip.processes import how_it_ended
from bitinglip.projections import filling
from bitinglip.projections.filling import Job, Outcome
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
    """Have a new file filled from the log, and put in the place of the old one once it has caught up.

    Raises:
        NoServer: the log cannot be asked; the old file serves on.
        RebuildFailed: the new file could not be filled; the old one serves on.
    """
    await asyncio.to_thread(sweep, path)
    try:
        _look_at(*await _done_apart(Job.of(beside(path), ground)))
    except BaseException:
        await asyncio.to_thread(sweep, path)
        raise
    await swap(partial(_put_in_place, path))


async def _done_apart(job: Job) -> tuple[int, bytes]:
    """Have a job done by a process of its own; return how it ended, and what it said."""
    process = _start()
    try:
        said, _ = await asyncio.to_thread(process.communicate, job.model_dump_json().encode())
    finally:
        process.kill()
        status = await asyncio.to_thread(process.wait)
    return status, said


def _start() -> subprocess.Popen[bytes]:
    """Start it: not by the loop, where uvloop forks, which stops a gateway of 600 MB for 33 ms (this uses vfork)."""
    command = (sys.executable, "-m", filling.__name__)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)


def _look_at(status: int, said: bytes) -> None:
    try:
        outcome = Outcome.model_validate_json(said)
    except ValidationError as error:
        raise RebuildFailed(problem=f"the process that filled it {how_it_ended(status)}") from error
    if outcome.no_server is not None:
        raise NoServer(problem=outcome.no_server)
    if outcome.failed is not None:
        raise RebuildFailed(problem=outcome.failed)


def _put_in_place(path: Path) -> None:
    """Replace the old file by the new one; what of it was not folded when it was closed is not the new one's."""
    for leftover in path.parent.glob(f"{path.name}.wal*"):
        leftover.unlink()
    os.replace(beside(path), path)
