"""What models take on a node's disk: what is there, what may go, and how much is still to come of one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bitinglip.errors import StoreReadOnly
from bitinglip.events.model import ModelFile
from bitinglip.models import importnotes, imports, snapshots
from bitinglip.models.eviction import Evictions, Stored, evictions
from bitinglip.models.layout import digest_of, place_of
from bitinglip.models.locks import exclusively
from bitinglip.models.snapshots import Mark
from bitinglip.models.state import Key
from bitinglip.models.store import default_hub_cache
from bitinglip.settings import Models as Settings
from bitinglip.workers.modelplan import Disk

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Room:
    """What models may take."""

    budget_bytes: int | None
    """All of them together; none: what is free."""
    min_free_bytes: int


class ModelDisk:
    """The managed store of one node. Everything here waits for the disk: call it in a thread."""

    def __init__(self, settings: Settings, models_dir: Path) -> None:
        self.models_dir = models_dir
        self.cache_dir: Path = settings.hub_cache or default_hub_cache()
        budget = None if settings.disk_gb is None else round(settings.disk_gb * GIB)
        self.room = Room(budget, round(settings.min_free_gb * GIB))

    def heal(self) -> None:
        """Put in order what crashes have left."""
        imports.sweep(self.models_dir)
        snapshots.heal(self.cache_dir)

    def look(self) -> Disk:
        """Return what is there."""
        found = [*snapshots.marks(self.cache_dir), *importnotes.notes(self.models_dir)]
        marks = {(each.reference, each.revision): each for each in found}
        unfinished = {(each.reference, each.revision) for each in snapshots.intents(self.cache_dir)}
        return Disk({key: mark.size_bytes for key, mark in marks.items()}, frozenset(unfinished - marks.keys()))

    def mark(self, key: Key) -> Mark | None:
        """Return what is noted of a revision that is there."""
        return snapshots.mark_of(place_of(self.cache_dir, *key)) or importnotes.taken_in(self.models_dir, *key)

    def was_taken_in(self, key: Key) -> bool:
        """Tell whether a revision is a folder that was taken in here; one from another node lies in the cache."""
        return importnotes.taken_in(self.models_dir, *key) is not None

    def unmark(self, key: Key) -> None:
        """Note that a revision is no longer there as a whole."""
        place = place_of(self.cache_dir, *key)
        if (mark := snapshots.mark_of(place)) is not None:
            snapshots.unmark(place, mark)

    def drop(self, key: Key) -> int:
        """Remove a revision, and return how many bytes that freed.

        Raises:
            ModelInUse, StoreReadOnly: see there.
        """
        freed = self.drop_folder(key)
        return freed + snapshots.drop(self.cache_dir, *key)

    def drop_folder(self, key: Key) -> int:
        """Remove the folder that a revision was taken in as, if it was; return how many bytes that freed."""
        return imports.drop(self.models_dir, key[0]) if self.was_taken_in(key) else 0

    def missing_bytes(self, key: Key, files: Collection[ModelFile]) -> int:
        """Return how many bytes of a revision are yet to come."""
        place = place_of(self.cache_dir, *key)
        lacking: dict[str, int] = {}
        for file in files:
            digest = digest_of(file) or file.path
            there = place.file(file.path)
            if not (there.is_file() and there.stat().st_size == file.size_bytes):
                part, blob = place.partial(digest), place.blobs / digest
                here = next((path.stat().st_size for path in (blob, part) if path.is_file()), 0)
                lacking[digest] = max(0, file.size_bytes - here)
        return sum(lacking.values())

    def stored(self, pinned: Collection[Key], needed: Collection[Key], elsewhere: Collection[Key] = ()) -> list[Stored]:
        """Return all that is there as a whole.

        What is `needed` beside other models counts as in use; what is `elsewhere` is kept by another node.
        """
        return [
            _stored(self.cache_dir, mark, pinned=key in pinned, needed=key in needed, elsewhere=key in elsewhere)
            for mark in snapshots.marks(self.cache_dir)
            for key in [(mark.reference, mark.revision)]
        ]

    def evictions(self, stored: list[Stored], needed_bytes: int, under_way_bytes: int, now: datetime) -> Evictions:
        """Return what is to go so that so many bytes can come.

        `under_way_bytes`: what has come already of what is not there as a whole.
        """
        free = max(0, snapshots.free_bytes(self.cache_dir) - self.room.min_free_bytes)
        budget = self.room.budget_bytes
        left = None if budget is None else max(0, budget - under_way_bytes)
        return evictions(stored, needed_bytes=needed_bytes, now=now, budget_bytes=left, free_bytes=free)


def _stored(cache_dir: Path, mark: Mark, *, pinned: bool, needed: bool, elsewhere: bool) -> Stored:
    sizes: Mapping[str, int] = {digest_of(file) or file.path: file.size_bytes for file in mark.files}
    return Stored(
        reference=mark.reference,
        revision=mark.revision,
        files=sizes,
        last_used=mark.last_used,
        pinned=pinned,
        in_use=needed or _in_memory(cache_dir, (mark.reference, mark.revision)),
        alone=mark.source != "hub" and not elsewhere,
    )


def _in_memory(cache_dir: Path, key: Key) -> bool:
    """Tell whether somebody has a revision in memory."""
    try:
        with exclusively(place_of(cache_dir, *key).lock) as alone:
            return not alone
    except (OSError, StoreReadOnly):  # then nothing can be dropped anyway
        return True
