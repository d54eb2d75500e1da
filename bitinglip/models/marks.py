"""What we write beside a revision: the mark of one that is whole, and the intent of one that is being fetched."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitinglip.errors import StoreReadOnly
from bitinglip.events.model import ModelFile, Source
from bitinglip.models.layout import DROPPING, INTENT, MARK, OURS, Place, place_of
from bitinglip.models.locks import READ_ONLY, exclusively

log = logging.getLogger(__name__)


class _Note(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    reference: str
    revision: str
    files: tuple[ModelFile, ...]

    @property
    def size_bytes(self) -> int:
        """Size of all its files."""
        return sum(file.size_bytes for file in self.files)


Note = TypeVar("Note", bound=_Note)


class Mark(_Note):
    """A revision that is ours: every file of it is there, and was checked."""

    source: Source
    stored_at: datetime
    last_used: datetime = Field(default=datetime.min.replace(tzinfo=UTC), exclude=True)
    """When it was last loaded, or else stored: the file's modification time."""


class Intent(_Note):
    """A revision that is being fetched, or whose fetch did not end."""

    asked_revision: str | None = None


def mark(cache_dir: Path, reference: str, revision: str, files: tuple[ModelFile, ...], source: Source) -> Mark:
    """Say that a revision is whole: its files were checked, and are there.

    Raises:
        StoreReadOnly: the store cannot be written.
    """
    place = place_of(cache_dir, reference, revision)
    now = datetime.now(UTC)
    made = Mark(reference=reference, revision=revision, files=files, source=source, stored_at=now, last_used=now)
    write(place, place.mark, made.model_dump_json())
    place.intent.unlink(missing_ok=True)
    return made


def intend(place: Place, files: tuple[ModelFile, ...], asked_revision: str | None = None) -> None:
    """Say that a revision is about to be fetched.

    Raises:
        StoreReadOnly: the store cannot be written.
    """
    intent = Intent(reference=place.reference, revision=place.revision, files=files, asked_revision=asked_revision)
    write(place, place.intent, intent.model_dump_json())


def marks(cache_dir: Path) -> list[Mark]:
    """Return the revisions of a store that are ours, by their names."""
    found = [_read_mark(path) for path in _notes(cache_dir) if not path.name.endswith((INTENT, DROPPING))]
    return [each for each in found if each is not None]


def mark_of(place: Place) -> Mark | None:
    """Return the mark of a revision; none: it is not ours, or not whole."""
    return _read_mark(place.mark)


def intents(cache_dir: Path, repo: str = "models--*") -> list[Intent]:
    """Return the revisions whose fetch goes on, or did not end; of one model if its folder is named."""
    found = [_read(path, Intent) for path in _notes(cache_dir, repo) if path.name.endswith(INTENT)]
    return [each for each in found if each is not None]


def touch(cache_dir: Path, reference: str, revision: str) -> None:
    """Note that a revision is used; one that is not ours, or in a store that cannot be written, has no such note."""
    try:
        os.utime(place_of(cache_dir, reference, revision).mark)
    except OSError as error:
        if not (isinstance(error, FileNotFoundError) or error.errno in READ_ONLY):
            raise


def read_only(cache_dir: Path) -> bool:
    """Return whether a store cannot be written by this process, be it that its file system is mounted so."""
    there = next((folder for folder in (cache_dir, *cache_dir.parents) if folder.is_dir()), cache_dir)
    return not os.access(there, os.W_OK | os.X_OK)


def write(place: Place, path: Path, text: str) -> None:
    """Write a note so that it is there as a whole, or not at all, whatever ends this process or the machine.

    Raises:
        StoreReadOnly: the store cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusively(place.repo_lock, wait=True):
            _replace(path, text)
    except OSError as error:
        if error.errno in READ_ONLY:
            raise StoreReadOnly(folder=str(place.cache_dir)) from error
        raise


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def free_bytes(cache_dir: Path) -> int:
    """Return what a store's disk has left for this user, in bytes."""
    there = next(folder for folder in (cache_dir, *cache_dir.parents) if folder.is_dir())
    return shutil.disk_usage(there).free


def _notes(cache_dir: Path, repo: str = "models--*") -> Iterator[Path]:
    yield from sorted(cache_dir.glob(f"{repo}/{OURS}/*{MARK}"))


def _read_mark(path: Path) -> Mark | None:
    found = _read(path, Mark)
    if found is None:
        return None
    try:
        used = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        return None
    return found.model_copy(update={"last_used": used})


def _read(path: Path, kind: type[Note]) -> Note | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s is not readable, so that what it speaks of is not ours: %s", path, error)
        return None
