"""A model's files are asked of the disk before the libraries ask, which read its small ones first and think meanwhile.

They map weights and touch them page by page, so that a disk works while they wait, and waits while they work.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import psutil

from bitinglip.models.memory import weight_files

log = logging.getLogger(__name__)

STEP_BYTES = 4 << 20
"""Asked for at a time: the kernel reads what is asked for in one call no faster than what nobody asked for."""
SMALL_BYTES = 16 << 20
"""Up to this size a file that is not weights may be read: a configuration, a vocabulary."""


def read_ahead(folders: Iterable[Path]) -> threading.Thread:
    """Begin to bring the files of models into the page cache, the small ones first.

    It ends by itself, when all have been asked for or would take more than half of the memory that is free; nobody need
    wait for it.
    """
    thread = threading.Thread(target=_read_all, args=(folders,), name="read-ahead", daemon=True)
    thread.start()
    return thread


def _read_all(folders: Iterable[Path]) -> None:
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        left = psutil.virtual_memory().available // 2
        for file in _in_order(folders):
            left -= _ask_for(file, left)
    except OSError as error:  # the load comes to the same file, and says more
        log.info("not read ahead: %s", error)


def _in_order(folders: Iterable[Path]) -> list[Path]:
    """Return what is small and lies beside the weights, and then these, as they are loaded."""
    small, heavy = list[Path](), list[Path]()
    for folder in folders:
        weights = weight_files(folder)
        beside = sorted({folder, *(file.parent for file in weights)})
        small += [file for part in beside for file in part.iterdir() if file not in weights and _is_small(file)]
        heavy += weights
    return small + heavy


def _is_small(file: Path) -> bool:
    return file.is_file() and file.stat().st_size <= SMALL_BYTES


def _ask_for(file: Path, most_bytes: int) -> int:
    """Ask for a file's pages, up to so many bytes; return how many these are."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        size = min(os.fstat(descriptor).st_size, most_bytes)
        for start in range(0, size, STEP_BYTES):
            os.posix_fadvise(descriptor, start, min(STEP_BYTES, size - start), os.POSIX_FADV_WILLNEED)
    finally:
        os.close(descriptor)
    return size
