"""Notes of the folders that were taken in as models: in `.bitinglip` of the models directory, one for each name."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from bitinglip.models.layout import OURS, Place
from bitinglip.models.marks import Mark, mark_of

log = logging.getLogger(__name__)


def notes(models_dir: Path) -> list[Mark]:
    """Return what was taken in, and is still there."""
    found = [_read(note) for note in sorted((models_dir / OURS).glob("*.json"))]
    return [each for each in found if each is not None and (models_dir / each.reference).is_dir()]


def taken_in(models_dir: Path, reference: str, revision: str) -> Mark | None:
    """Return the note of a revision that was taken in here; none: it was not, or another one lies there by now."""
    note = _read(note_of(models_dir, reference)) if (models_dir / reference).is_dir() else None
    return note if note is not None and (note.reference, note.revision) == (reference, revision) else None


def holding_of(place: Place, models_dir: Path | None) -> tuple[Mark, Path] | None:
    """Return the mark or note of a revision that is here as a whole, and the folder of its files."""
    if (mark := mark_of(place)) is not None:
        return mark, place.snapshot
    if models_dir is None or (note := taken_in(models_dir, place.reference, place.revision)) is None:
        return None
    return note, models_dir / place.reference


def note_of(models_dir: Path, reference: str) -> Path:
    """Return where the note of a model lies."""
    return models_dir / OURS / f"{reference.replace('/', '--')}.json"


def _read(note: Path) -> Mark | None:
    try:
        return Mark.model_validate_json(note.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s is not readable, so that what it speaks of is not ours: %s", note, error)
        return None
