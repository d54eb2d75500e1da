"""Locks between processes that don't know each other: `flock` on a file, which ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitinglip.models.layout import place_of

AGAIN_S = 0.01
READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
"""What the system says of a file that may not be written."""

NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What it says where the file system carries no locks."""


@contextmanager
def in_use(cache_dir: Path, reference: str, revision: str) -> Iterator[None]:
    """Keep a revision from being dropped, from before it is loaded until it is no longer needed.

    Many may do so at a time. Waits for one who is just dropping it: look afterwards whether it is there. In a store
    that cannot be written nothing of ours can drop it, and a revision without a folder has nothing to keep.
    """
    place = place_of(cache_dir, reference, revision)
    held = hold(place.lock, fcntl.LOCK_SH) if place.repo.is_dir() else None
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def exclusively(path: Path, *, wait: bool = False, within_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock alone; tells whether it was to be had, at once or within so many seconds.

    Raises:
        OSError: the lock's file cannot be written.
    """
    how = fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)
    until = time.monotonic() + within_s
    while (held := hold(path, how, must=True)) is None and time.monotonic() < until:
        time.sleep(AGAIN_S)
    try:
        yield held is not None
    finally:
        if held is not None:
            os.close(held)


def is_held(path: Path) -> bool:
    """Return whether some process holds a lock; without a file nobody does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def hold(path: Path, how: int, *, must: bool = False) -> int | None:
    """Return a descriptor that holds the lock until it is closed; none: another has it, or nobody can.

    Raises:
        OSError: the file cannot be written or locked, and it `must`.
    """
    while True:
        descriptor = _open(path, must=must)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, how)
            if _is_still(descriptor, path):
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError) or (error.errno in NO_LOCKS and not must):
                return None
            raise
        os.close(descriptor)  # the file was removed while we waited: what we hold is not what others look at


def _open(path: Path, *, must: bool) -> int | None:
    try:
        path.parent.mkdir(exist_ok=True, parents=must)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:  # the model's folder is just being removed
        return _open(path, must=must) if must else None
    except OSError as error:
        if must or error.errno not in READ_ONLY:
            raise
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # where others may write, their lock holds for us too
    except OSError:
        return None


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)
