"""The part of a file that has come so far, whoever sent it: it is gone on with, also by another process."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from bitinglip.events.model import ModelFile
from bitinglip.models.digests import Digests, HashingThread, read_into


class Partial:
    """A file that grows at its end, and is hashed while it does.

    As much of a binary stream as `huggingface_hub`'s download writes to.
    """

    def __init__(self, path: Path, file: ModelFile) -> None:
        self.path = path
        self._file = file
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("ab")
        if self.have > file.size_bytes:
            self._stream.truncate(0)
        self._hasher = HashingThread(file)
        read_into(self._hasher, path)

    def __enter__(self) -> Partial:
        """It is open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Keep what has come."""
        self._stream.close()
        self._hasher.digests()

    @property
    def have(self) -> int:
        """Bytes that have come."""
        self._stream.flush()
        return os.fstat(self._stream.fileno()).st_size

    @property
    def whole(self) -> bool:
        """Whether as much has come as is to."""
        return self.have == self._file.size_bytes

    def write(self, piece: bytes) -> int:
        """Add what came next."""
        self._hasher.update(piece)
        return self._stream.write(piece)

    def tell(self) -> int:
        """Return how much has come."""
        return self.have

    def seek(self, offset: int) -> int:
        """Go back to the beginning: nothing else is asked for, by one who got the whole rather than the rest."""
        assert offset == 0
        return 0

    def truncate(self) -> int:
        """Forget what has come."""
        self._stream.truncate(0)
        self._hasher.digests()
        self._hasher = HashingThread(self._file)
        return 0

    def digests(self) -> Digests:
        """Return the digests of what has come; nothing can be added any more."""
        self._stream.flush()
        return self._hasher.digests()
