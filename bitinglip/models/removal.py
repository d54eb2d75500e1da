"""Removing a revision from the store in steps, each of which can be the last one before a crash.

The plan is written first: from then on the revision is not ours any more, and whoever finds the plan finishes it.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from bitinglip.models.layout import MARK, OURS, REPO_LOCK, Place
from bitinglip.models.locks import exclusively
from bitinglip.models.marks import Intent, intents, write


def plan(place: Place) -> None:
    """Write down what is to be removed; needs the revision's lock."""
    if not place.dropping.exists():
        names = sorted({*_linked(place.snapshot, place.blobs), *_named(place)})
        write(place, place.dropping, orjson.dumps({"blobs": names}).decode())
    place.mark.unlink(missing_ok=True)
    place.intent.unlink(missing_ok=True)


def finish(place: Place) -> int:
    """Remove what the plan names, and return the bytes that this freed; needs the revision's lock."""
    names: list[str] = orjson.loads(place.dropping.read_bytes())["blobs"]
    place.mark.unlink(missing_ok=True)
    place.intent.unlink(missing_ok=True)
    _drop_refs(place)
    freed = _drop_snapshot(place)
    with exclusively(place.repo_lock, wait=True):
        kept = set(_used(place))
        freed += _drop_blobs(place, [place.blobs / name for name in names if name not in kept])
    place.dropping.unlink()
    place.fetch_lock.unlink(missing_ok=True)
    place.lock.unlink(missing_ok=True)
    tidy(place.repo)
    return freed


def discard(place: Place, path: str) -> None:
    """Remove a file whose content is not what it should be, and that content, whoever else links to it."""
    link = place.file(path)
    if link.is_symlink():
        blob = link.parent / os.readlink(link)
        if blob.is_symlink():
            unlink(blob.resolve())  # in the store that models share
        unlink(blob)
    unlink(link)


def unlink(file: Path) -> int:
    """Remove a file if it is there, and return its size."""
    try:
        size = file.lstat().st_size
        file.unlink()
    except FileNotFoundError:
        return 0
    return size


def _linked(folder: Path, blobs: Path) -> Iterator[str]:
    """Yield the names of the blobs that a snapshot links to."""
    for link in folder.rglob("*"):
        if link.is_symlink():
            target = Path(os.path.normpath(link.parent / os.readlink(link)))
            if target.parent == blobs:
                yield target.name


def _named(place: Place) -> Iterator[str]:
    """Yield the names of blobs that a fetch may have brought without a link to them."""
    for intent in intents(place.cache_dir, place.repo.name):
        if intent.revision == place.revision:
            yield from _names(place, intent)


def _used(place: Place) -> Iterator[str]:
    """Yield the names of the blobs that other revisions need: what is linked, and what is being fetched."""
    yield from _linked(place.repo / "snapshots", place.blobs)
    for intent in intents(place.cache_dir, place.repo.name):
        yield from _names(place, intent)


def _names(place: Place, intent: Intent) -> Iterator[str]:
    for file in intent.files:
        for digest in filter(None, (file.sha256, file.git_sha1)):
            yield digest
            yield place.partial(digest).name


def _drop_refs(place: Place) -> None:
    """Remove the branches and tags that point at the revision."""
    for ref in (place.repo / "refs").rglob("*"):
        if ref.is_file() and ref.read_text("utf-8").strip() == place.revision:
            ref.unlink(missing_ok=True)


def _drop_snapshot(place: Place) -> int:
    """Take the snapshot away at once, so that nobody loads half of it, and remove it then."""
    if place.snapshot.is_dir():
        shutil.rmtree(place.gone, ignore_errors=True)
        place.snapshot.rename(place.gone)
    copies = [file for file in place.gone.rglob("*") if file.is_file() and not file.is_symlink()]
    freed = sum(unlink(file) for file in copies)  # where the file system knows no links
    shutil.rmtree(place.gone, ignore_errors=True)
    shutil.rmtree(place.repo / ".no_exist" / place.revision, ignore_errors=True)
    (place.repo / "trees" / f"{place.revision}.json").unlink(missing_ok=True)
    return freed


def _drop_blobs(place: Place, blobs: Iterable[Path]) -> int:
    there = list(blobs)
    shared = [blob for blob in there if blob.is_symlink()]
    freed = sum(unlink(blob) for blob in there if not blob.is_symlink())
    return freed + (_drop_shared(place.cache_dir, shared) if shared else 0)


def _drop_shared(cache_dir: Path, blobs: list[Path]) -> int:
    """Remove blobs that are links into the store that huggingface_hub shares among models: it knows who uses it."""
    from huggingface_hub.utils import DeleteCacheStrategy

    targets = [(blob.resolve(), blob.stat().st_size) for blob in blobs if blob.exists()]
    nothing = frozenset[Path]()
    DeleteCacheStrategy(
        expected_freed_size=0,
        blobs=frozenset(blobs),
        refs=nothing,
        repos=nothing,
        snapshots=nothing,
        files=nothing,
        cache_dir=cache_dir,
    ).execute()
    return sum(size for target, size in targets if not target.exists())


def tidy(repo: Path) -> None:
    """Remove a model's folder if nothing of it is left but empty folders and locks that nobody holds."""
    ours = repo / OURS
    with exclusively(ours / REPO_LOCK, wait=True):
        if any(ours.glob(f"*{MARK}")):
            return
        for lock in ours.glob("*.lock"):
            with exclusively(lock) as alone:
                if alone:
                    lock.unlink()
        for name in ("refs", "snapshots", "blobs", "trees", ".no_exist"):
            _remove_if_empty(repo / name)
        if _entries(repo) == {OURS} and _entries(ours) == {REPO_LOCK}:
            (ours / REPO_LOCK).unlink()
            _remove_if_empty(repo)


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _remove_if_empty(folder: Path) -> None:
    """Remove the empty folders in a folder, and then it, if it is empty."""
    for inner in (*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder):
        try:
            inner.rmdir()
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                raise
