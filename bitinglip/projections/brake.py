"""An end to memory that a query takes faster than it can be stopped: the process gets no large piece of it for a while.

DuckDB then says that it has none, and the query ends; small pieces, as everything else in the process needs, are there.
"""

from __future__ import annotations

import logging
import resource
from pathlib import Path
from threading import Lock

ROOM_BYTES = 256 * 2**20
"""What the process may still take while the brake is on."""
STATUS = Path("/proc/self/status")
log = logging.getLogger(__name__)


class Brake:
    """Holds the process's memory for as long as somebody has it on; does nothing where the kernel tells no size."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held = 0
        self._before = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)

    def hold(self) -> None:
        """Hold it until it is released as often as it was held."""
        with self._lock:
            self._held += 1
            if self._held == 1 and (size := _data_bytes()) is not None:
                log.warning("a query takes too much memory: the process gets no more than a little until it has ended")
                self._before = resource.getrlimit(resource.RLIMIT_DATA)
                resource.setrlimit(resource.RLIMIT_DATA, (_least(size + ROOM_BYTES, self._before[1]), self._before[1]))

    def release(self) -> None:
        """Let it go on."""
        with self._lock:
            self._held -= 1
            if self._held == 0:
                resource.setrlimit(resource.RLIMIT_DATA, self._before)


def _data_bytes() -> int | None:
    if not STATUS.exists():
        return None
    found = [line.split()[1] for line in STATUS.read_text("ascii").splitlines() if line.startswith("VmData:")]
    return int(found[0]) * 1024 if found else None


def _least(size: int, hard: int) -> int:
    return size if hard == resource.RLIM_INFINITY else min(size, hard)
