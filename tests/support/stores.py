"""Revisions in a cache of the hub's layout, put there without a hub."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bitinglip.events.model import ModelFile
from bitinglip.models import snapshots
from bitinglip.models.layout import Place, place_of
from bitinglip.models.linking import link


def put(cache: Path, reference: str, revision: str, contents: dict[str, bytes], *, ours: bool = True) -> Place:
    """Put a revision into a cache, and mark it if it is to be ours."""
    place = place_of(cache, reference, revision)
    files: list[ModelFile] = []
    place.blobs.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        (place.blobs / digest).write_bytes(content)
        link(place.file(path), place.blobs / digest)
        files.append(ModelFile(path=path, size_bytes=len(content), sha256=digest))
    if ours:
        snapshots.mark(cache, reference, revision, tuple(files), "hub")
    return place


def point(place: Place, ref: str) -> None:
    """Have a branch or tag point at a revision."""
    path = place.repo / "refs" / ref
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(place.revision)


def tree(cache: Path) -> set[str]:
    """Return all that is in a cache but locks."""
    return {
        path.relative_to(cache).as_posix()
        for path in cache.rglob("*")
        if not path.name.endswith(".lock") and ".locks" not in path.parts
    }
