"""Digests of files: SHA-256, and git's own name of a content where the hub tells no other."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bitinglip.events.model import ModelFile

PIECE_BYTES = 1 << 20
AHEAD = 2
"""Portions that may wait for the thread that hashes."""


@dataclass(frozen=True, slots=True)
class Digests:
    """Of one content."""

    sha256: str
    git_sha1: str | None

    def fit(self, file: ModelFile) -> bool:
        """Return whether this is the content that a file is to have; one without any digest has only a size."""
        if file.sha256 is not None:
            return self.sha256 == file.sha256
        return file.git_sha1 is None or self.git_sha1 == file.git_sha1


class Hasher:
    """Takes a file's content piece by piece."""

    def __init__(self, file: ModelFile) -> None:
        self._sha256 = hashlib.sha256()
        self._git = None
        if file.sha256 is None and file.git_sha1 is not None:
            self._git = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)

    def update(self, piece: bytes | memoryview) -> None:
        """Take the next piece."""
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    def digests(self) -> Digests:
        """Return the digests of all that was taken."""
        return Digests(self._sha256.hexdigest(), self._git and self._git.hexdigest())


class HashingThread:
    """A hasher beside the thread that brings the content, which waits only if it is far ahead."""

    def __init__(self, file: ModelFile) -> None:
        self._hasher = Hasher(file)
        self._pieces: queue.Queue[list[bytes] | None] = queue.Queue(AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def update(self, pieces: list[bytes]) -> None:
        """Hand over the next pieces."""
        self._pieces.put(pieces)

    def digests(self) -> Digests:
        """Wait for the last piece, and return the digests; nothing can be handed over any more."""
        if self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()
        return self._hasher.digests()

    def _run(self) -> None:
        while (pieces := self._pieces.get()) is not None:
            for piece in pieces:
                self._hasher.update(piece)


def pieces_of(path: Path) -> Iterator[bytes]:
    """Yield a file's content.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def digests_of(path: Path, file: ModelFile, each: Callable[[int], None]) -> Digests:
    """Return the digests of a file on the disk; `each` is called with the size of every piece that was read.

    Raises:
        OSError: the file cannot be read.
    """
    hasher = Hasher(file)
    for piece in pieces_of(path):
        hasher.update(piece)
        each(len(piece))
    return hasher.digests()
