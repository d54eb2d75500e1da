"""A process's log file: appended to by the process itself, bounded by its parent, and read from its end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO

TAIL_BYTES = 262_144
"""Most that is read of a log's end."""


class LogFile:
    """A file that one process appends to. It outlives the parent, which looks at its size now and then."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes

    def open(self) -> IO[bytes]:
        """Open it for a process to append to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return self.path.open("ab")

    def bound(self) -> None:
        """Begin the file anew if it is too large; what was in it is kept as `<name>.1`.

        The process has it open for appending, so it goes on at the new beginning. What it writes meanwhile is lost.
        """
        if self.path.exists() and self.path.stat().st_size > self._max_bytes:
            shutil.copyfile(self.path, self.path.with_name(f"{self.path.name}.1"))
            with self.path.open("r+b") as file:
                file.truncate(0)

    def last_lines(self, most: int) -> list[str]:
        """Return the last lines, fewer if they are very long."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return lines[-most:] if most else []
