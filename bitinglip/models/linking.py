"""Files of a snapshot and the contents that they link to."""

from __future__ import annotations

import os
from pathlib import Path

from bitinglip.events.model import ModelFile
from bitinglip.models.layout import Place, digest_of


def is_there(place: Place, file: ModelFile) -> bool:
    """Return whether a file is there, by its size; a content that lacks its link, as crashes leave it, gets it."""
    path, digest = place.file(file.path), digest_of(file)
    if not path.exists() and digest is not None and _has_size(place.blobs / digest, file):
        link(path, place.blobs / digest)
    return _has_size(path, file)


def put(place: Place, file: ModelFile, part: Path, digest: str) -> None:
    """Make what has come as a part the content of a file."""
    blob = place.blobs / digest
    part.replace(blob)
    link(place.file(file.path), blob)


def link(path: Path, blob: Path) -> None:
    """Have a file of a snapshot be a link to its content; where the file system knows none, the content itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except (NotImplementedError, PermissionError):
        blob.replace(path)


def _has_size(path: Path, file: ModelFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size_bytes
