"""Folders of this machine that are taken in as models: `python -m bitinglip.models.imports`, a job on standard input.

What was taken in lies in the models directory under its name, and a note of it, with the digest of each file, in
`.bitinglip` there: a folder without one was put there by hand, and is never checked or dropped.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bitinglip.errors import BitingLipError, ImportRefused
from bitinglip.events.model import ModelDescribed, ModelFile
from bitinglip.models.describe import described
from bitinglip.models.importnotes import note_of, notes
from bitinglip.models.jobprocess import end, read_job
from bitinglip.models.layout import OURS
from bitinglip.models.marks import Mark
from bitinglip.models.memory import Known, known
from bitinglip.models.protocol import Checked, Failed, Line
from bitinglip.models.reference import parse_reference
from bitinglip.models.repofiles import wanted
from bitinglip.models.store import StoredModel, inspect

PIECE_BYTES = 1 << 20


class FolderJob(BaseModel):
    """A folder to take in, or one that was taken in and is to be compared with its note."""

    model_config = ConfigDict(frozen=True)

    reference: str
    models_dir: Path
    path: str | None = None
    """Folder to take in; none: compare."""


def take_in(job: FolderJob) -> ModelDescribed:
    """Copy a folder's model under its name, all at once, note it, and describe it.

    Raises:
        ImportRefused: it is no folder that can be read, or there is another one of that name.
        OnlyPickles, NothingToLoad, UnsafeRepository, InvalidReference: it is no model that an engine takes.
    """
    source, target = Path(job.path or ""), job.models_dir / job.reference
    if parse_reference(job.reference).revision is not None:
        raise ImportRefused(path=str(source), problem="a folder's revision is its digest: name the model without one")
    if target.exists() and not any(each.reference == job.reference for each in notes(job.models_dir)):
        raise ImportRefused(path=str(source), problem=f"{target} is there already, and was not taken in")
    listing = list(_files(source))
    chosen = wanted(listing, reference=job.reference)
    aside = job.models_dir / OURS / "importing" / secrets.token_hex(4)
    try:
        files = [_copy(source, aside / "new", file) for file in chosen]
        model = inspect(job.reference, aside / "new")
        what = _known(source, aside / "new")
        _put(aside, target)
        _note(job, model, files)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return described(job.reference, model.revision or "", files, what, source="import")


def compare(job: FolderJob) -> Checked:
    """Compare a folder that was taken in with its note."""
    note = next((each for each in notes(job.models_dir) if each.reference == job.reference), None)
    files = note.files if note else ()
    folder = job.models_dir / job.reference
    missing = tuple(file.path for file in files if not (folder / file.path).is_file())
    there = [file for file in files if file.path not in missing]
    damaged = tuple(file.path for file in there if _digest(folder / file.path) != file.sha256)
    checked = sum(file.size_bytes for file in there)
    return Checked(files=len(files), checked_bytes=checked, missing=missing, damaged=damaged)


def drop(models_dir: Path, reference: str) -> int:
    """Remove what was taken in under a name, and return how many bytes that freed."""
    folder, aside = models_dir / reference, models_dir / OURS / "importing" / secrets.token_hex(4)
    freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    aside.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(aside)
    note_of(models_dir, reference).unlink(missing_ok=True)
    shutil.rmtree(aside)
    return freed


def sweep(models_dir: Path) -> None:
    """Remove what crashes left."""
    shutil.rmtree(models_dir / OURS / "importing", ignore_errors=True)


def _files(source: Path) -> Iterator[ModelFile]:
    """Yield the files of a folder, but for hidden ones."""
    if not source.is_absolute() or not source.is_dir() or not os.access(source, os.R_OK | os.X_OK):
        raise ImportRefused(path=str(source), problem="it is not the absolute path of a folder that can be read")
    for file in sorted(source.rglob("*")):
        path = file.relative_to(source)
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            yield ModelFile(path=path.as_posix(), size_bytes=file.stat().st_size)


def _copy(source: Path, folder: Path, file: ModelFile) -> ModelFile:
    target, digest = folder / file.path, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (source / file.path).open("rb") as stream, target.open("wb") as copy:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                copy.write(piece)
            copy.flush()
            os.fsync(copy.fileno())
    except OSError as error:
        raise ImportRefused(path=str(source), problem=f"{file.path} is not copied: {error.strerror}") from error
    return ModelFile(path=file.path, size_bytes=target.stat().st_size, sha256=digest.hexdigest())


def _known(source: Path, folder: Path) -> Known:
    try:
        return known(folder)
    except ValueError as error:
        raise ImportRefused(path=str(source), problem=str(error)) from error


def _put(aside: Path, target: Path) -> None:
    """Put the copy in its place; what was there before goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        target.rename(aside / "old")
    (aside / "new").rename(target)


def _note(job: FolderJob, model: StoredModel, files: list[ModelFile]) -> None:
    note = note_of(job.models_dir, job.reference)
    mark = Mark(
        reference=job.reference,
        revision=model.revision or "",
        files=tuple(files),
        source="import",
        stored_at=datetime.now(UTC),
    )
    temporary = note.with_suffix(".tmp")
    temporary.write_text(mark.model_dump_json(), "utf-8")
    temporary.replace(note)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def main() -> None:
    """Do one job."""
    job = read_job(FolderJob)
    try:
        end(Line(checked=compare(job)) if job.path is None else Line(described=take_in(job)))
    except BitingLipError as error:
        end(Line(failed=Failed.of(error)))


if __name__ == "__main__":
    main()
