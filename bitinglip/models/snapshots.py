"""The managed store in the hub's cache: what is ours, using it, dropping it, and healing it after a crash.

The marks and intents are in `marks`, the locks in `locks`; whoever uses the store finds all of it here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bitinglip.errors import ModelInUse, StoreReadOnly
from bitinglip.models.layout import DROPPING, OURS, PARTIAL, REPO_LOCK, Place, blob_lock, digest_of, place_in, place_of
from bitinglip.models.locks import exclusively, in_use, is_held
from bitinglip.models.marks import (
    Intent,
    Mark,
    free_bytes,
    intend,
    intents,
    mark,
    mark_of,
    marks,
    read_only,
    touch,
)
from bitinglip.models.removal import finish, plan, tidy, unlink

__all__ = [
    "Healed",
    "Intent",
    "Mark",
    "Usage",
    "drop",
    "du",
    "free_bytes",
    "heal",
    "in_use",
    "intend",
    "intents",
    "mark",
    "mark_of",
    "marks",
    "read_only",
    "sweep",
    "touch",
    "unmark",
]
log = logging.getLogger(__name__)

LOOKS_S = 0.5
"""A revision that is in use for no longer was only looked at."""


@dataclass(frozen=True, slots=True)
class Healed:
    """What a store was like when an agent started."""

    missing: tuple[Mark, ...] = ()
    """Revisions that were ours, and of which files are gone: what is left of them is now an intent."""
    unfinished: tuple[Intent, ...] = ()
    """Revisions whose fetch did not end, and that nobody is fetching: to be fetched on, or dropped."""
    swept_bytes: int = 0
    """Size of what crashes had left, and is removed."""
    read_only: bool = False
    """Whether the store cannot be written: then nothing was changed."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a store takes on its disk, in bytes."""

    marked_bytes: int
    """Contents of the models of which a revision is ours, each once however many revisions share it."""
    other_bytes: int
    """Contents of models that other programs fetched."""
    partial_bytes: int
    """Parts of files that are being fetched, or whose fetch did not end."""
    free_bytes: int
    """What the disk has left."""


def drop(cache_dir: Path, reference: str, revision: str) -> int:
    """Remove a revision that is ours, whole or not, and return the bytes that this freed.

    Contents that another revision uses stay. Killed in the middle, it is finished by `heal`, or by the next `drop`.

    Raises:
        ModelInUse: somebody has it in memory, or fetches it.
        StoreReadOnly: the store cannot be written.
    """
    place = place_of(cache_dir, reference, revision)
    if not _is_ours(place):
        return 0
    if read_only(place.ours):
        raise StoreReadOnly(folder=str(cache_dir))
    with ExitStack() as held:
        # Who only looks whether it is in use holds the lock for a moment, too.
        locks = [held.enter_context(exclusively(lock, within_s=LOOKS_S)) for lock in (place.lock, place.fetch_lock)]
        if not all(locks):
            raise ModelInUse(reference=reference, revision=revision)
        plan(place)
        return finish(place)


def heal(cache_dir: Path) -> Healed:
    """Put a store in order: finish removals, sweep what crashes left, and find what others took away."""
    found = marks(cache_dir)
    missing = tuple(each for each in found if not _is_whole(place_of(cache_dir, each.reference, each.revision), each))
    if read_only(cache_dir):
        log.info("%s cannot be written: what is in it can be run, and nothing is fetched or dropped", cache_dir)
        return Healed(missing=missing, read_only=True)
    swept = sum(_finish_drops(cache_dir))
    for each in missing:
        log.warning("%s at %s was taken away, in part or as a whole, by another program", each.reference, each.revision)
        unmark(place_of(cache_dir, each.reference, each.revision), each)
    pending = [(place_of(cache_dir, each.reference, each.revision), each) for each in intents(cache_dir)]
    swept += sum(sweep(repo) for repo in sorted(cache_dir.glob("models--*")) if repo.is_dir())
    for ours in sorted(cache_dir.glob(f"models--*/{OURS}")):
        tidy(ours.parent)
    unfinished = tuple(each for place, each in pending if not place.mark.exists() and not is_held(place.fetch_lock))
    return Healed(missing=missing, unfinished=unfinished, swept_bytes=swept)


def du(cache_dir: Path) -> Usage:
    """Return what a store takes on its disk."""
    ours = {place_of(cache_dir, each.reference, each.revision).repo for each in marks(cache_dir)}
    marked = other = partial = 0
    for repo in cache_dir.glob("models--*"):
        for file in _contents(repo):
            size = file.stat().st_size if file.exists() else 0
            if file.name.endswith(".incomplete"):
                partial += size
            elif repo in ours:
                marked += size
            else:
                other += size
    return Usage(marked, other, partial, free_bytes(cache_dir))


def _contents(repo: Path) -> Iterator[Path]:
    yield from (repo / "blobs").glob("*")
    yield from (file for file in (repo / "snapshots").rglob("*") if file.is_file() and not file.is_symlink())


def _is_ours(place: Place) -> bool:
    return any(note.exists() for note in (place.mark, place.intent, place.dropping))


def _is_whole(place: Place, mark: Mark) -> bool:
    files = [(place.file(file.path), file.size_bytes) for file in mark.files]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def unmark(place: Place, mark: Mark) -> None:
    """Make an intent of the mark of a revision that is no longer whole, so that what is left is used, or dropped.

    Raises:
        StoreReadOnly: the store cannot be written.
    """
    if place.snapshot.is_dir():
        intend(place, mark.files)
    place.mark.unlink(missing_ok=True)


def _finish_drops(cache_dir: Path) -> Iterator[int]:
    for note in sorted(cache_dir.glob(f"models--*/{OURS}/*{DROPPING}")):
        place = place_in(note.parent.parent, note.name.removesuffix(DROPPING))
        with exclusively(place.lock) as alone:
            if alone:
                yield finish(place)


def sweep(repo: Path) -> int:
    """Remove what crashes left in a model's folder and nobody goes on with, and return its size."""
    ours = repo / OURS
    wanted = {digest_of(file) for each in intents(repo.parent, repo.name) for file in each.files}
    if ours.is_dir():
        with exclusively(ours / REPO_LOCK, wait=True):  # whoever writes a note holds it
            for left in ours.glob("*.tmp"):
                left.unlink(missing_ok=True)
    return sum(_sweep_part(repo, part, wanted) for part in (repo / "blobs").glob("*.incomplete"))


def _sweep_part(repo: Path, part: Path, wanted: set[str | None]) -> int:
    if part.name.endswith(PARTIAL):
        return 0 if part.name.removesuffix(PARTIAL) in wanted else unlink(part)
    return 0 if is_held(blob_lock(repo, part.name.partition(".")[0])) else unlink(part)
