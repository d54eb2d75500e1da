"""The part of a file that has come so far, whoever sent it: it is gone on with, also by another process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from bitinglip.events.model import ModelFile
from bitinglip.models.digests import Digests, HashingThread, pieces_of

PIECE_BYTES = 1 << 20
"""What is gathered before it is written and hashed: networks hand out less at a time."""
PIECE_S = 0.2
"""And for how long it is gathered at most."""


class Partial:
    """A file that grows at its end, and is hashed while it does."""

    def __init__(self, path: Path, file: ModelFile) -> None:
        self.path = path
        self._size = file.size_bytes
        self._file = file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab", buffering=0)
        self.have = self._stream.tell()
        """Bytes that have come."""
        self._hasher = HashingThread(file)
        if self.have > self._size:
            self.restart()
        for piece in pieces_of(path):
            self._hasher.update([piece])

    def __enter__(self) -> Partial:
        """It is open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Keep what has come."""
        self._stream.close()
        self._hasher.digests()

    @property
    def whole(self) -> bool:
        """Whether as much has come as is to."""
        return self.have >= self._size

    @property
    def wanted(self) -> dict[str, str]:
        """The headers that ask for the rest, as it is."""
        rest = {"Range": f"bytes={self.have}-"} if self.have else {}
        return {"Accept-Encoding": "identity", **rest}

    def take(self, pieces: Iterable[bytes], count: Callable[[int], None]) -> None:
        """Add what comes, and keep it whatever ends it; nothing is taken beyond the file's end.

        Args:
            pieces: What a connection gives.
            count: Called with the size of what was written.

        Raises:
            OSError: it cannot be written.
        """
        gathered: list[bytes] = []
        size, due = 0, time.monotonic() + PIECE_S
        try:
            for piece in pieces:
                gathered.append(piece)
                size += len(piece)
                if self.have + size > self._size:
                    return
                if size >= PIECE_BYTES or time.monotonic() > due:
                    gathered, ready = [], gathered
                    self._add(ready, count)
                    size, due = 0, time.monotonic() + PIECE_S
        finally:
            self._add(gathered, count)

    def restart(self) -> None:
        """Forget what has come."""
        self._stream.truncate(0)
        self.have = 0
        self._hasher.digests()
        self._hasher = HashingThread(self._file)

    def digests(self) -> Digests:
        """Return the digests of what has come; nothing can be added any more."""
        return self._hasher.digests()

    def _add(self, pieces: list[bytes], count: Callable[[int], None]) -> None:
        size = sum(map(len, pieces))
        written = os.writev(self._stream.fileno(), pieces) if pieces else 0
        if written < size:  # the disk is nearly full: what does not fit raises
            rest = memoryview(b"".join(pieces))[written:]
            while rest:
                rest = rest[self._stream.write(rest) :]
        self._hasher.update(pieces)
        self.have += size
        count(size)
