"""What is on this machine: folders of local models, and snapshots in the hub's cache. Reads, never writes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import orjson

from bitinglip.errors import InvalidReference, ModelNotFound
from bitinglip.models.importnotes import notes
from bitinglip.models.kinds import PARTS, architecture_of, context_of, kind_of
from bitinglip.models.layout import place_of
from bitinglip.models.marks import marks
from bitinglip.models.memory import weight_files
from bitinglip.models.reference import Reference, parse_reference
from bitinglip.models.repofiles import CONFIG, PIPELINE

log = logging.getLogger(__name__)

SMALL_FILE_BYTES = 1 << 20
"""A local folder's revision covers the whole content of files up to this size, and the head and size of larger ones."""

ECHO = "echo"
MARKERS = (CONFIG, PIPELINE)
"""A folder with one of these files holds a model: transformers', or diffusers'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model that this machine can run."""

    reference: str
    kind: str
    revision: str | None = None
    """The hub's commit, or for a local folder `sha256:` and a digest of what is in it."""
    path: Path | None = None
    """Folder of the snapshot; none for the built-in `echo`."""
    architecture: str | None = None
    size_bytes: int | None = None
    """Size of the weights."""
    written_ns: int = 0
    """When the newest of the weights, those of its parts included, was written (nanoseconds): what was loaded before
    that is something else."""
    context_tokens: int | None = None
    parts: Mapping[str, Path] = field(default_factory=dict[str, Path])
    """Folders of the models that it needs beside it, of those that are on this machine."""


def find_models(
    wanted: Iterable[str], models_dir: Path, hub_cache: Path | None, elsewhere: Collection[str] = ()
) -> list[StoredModel]:
    """Return the models that a worker is to serve: those named, or `echo` and all that are ours.

    Ours are those in the models directory, and what is marked in the hub's cache: each as `NAME@REVISION`, and as
    `NAME` the one that the cache calls `main`. What was taken in is there as `NAME@REVISION` as well. Of two of one
    name that in the models directory counts.

    A name is `REFERENCE` (looked for in the models directory, then in the hub's cache) or `REFERENCE=FOLDER`. One that
    is `elsewhere` is a language model on a server that runs: its files need not be on this machine.

    Raises:
        ModelNotFound: a named model is not there.
        InvalidReference: a name cannot be read, or the folder's kind is unknown.
    """
    names, cache = list(wanted), hub_cache or default_hub_cache()
    if names:
        found = [_elsewhere(name) if name in elsewhere else _find(name, models_dir, cache) for name in names]
    else:
        everything = [
            StoredModel(reference=ECHO, kind=ECHO),
            *_all_in(models_dir),
            *_taken_in(models_dir),
            *_managed(cache),
        ]
        found = list({model.reference: model for model in reversed(everything)}.values())[::-1]
    return [_with_parts(model, models_dir, cache) for model in found]


def default_hub_cache() -> Path:
    """Return where huggingface_hub keeps its cache, by the same variables that it reads itself."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")


def inspect(reference: str, path: Path, revision: str | None = None) -> StoredModel:
    """Read a snapshot's metadata from its configuration and file sizes; loads no weights.

    Raises:
        ModelNotFound: the folder has no readable `config.json`.
        InvalidReference: it is of an architecture that no engine takes.
    """
    config = _config(reference, path)
    architecture = architecture_of(config)
    kind = kind_of(config, {entry.name for entry in path.iterdir()})
    if kind is None:
        raise InvalidReference(reference=reference, problem=f"no engine takes the architecture {architecture}")
    return StoredModel(
        reference=reference,
        kind=kind,
        revision=revision or _digest(path),
        path=path,
        architecture=architecture,
        size_bytes=sum(file.stat().st_size for file in weight_files(path)),
        written_ns=_written_ns(path),
        context_tokens=context_of(config),
    )


def _elsewhere(name: str) -> StoredModel:
    return StoredModel(reference=str(parse_reference(name)), kind="text-generation")


def _find(name: str, models_dir: Path, hub_cache: Path) -> StoredModel:
    text, equals, folder = name.partition("=")
    if text == ECHO:
        return StoredModel(reference=ECHO, kind=ECHO)
    reference = parse_reference(text)
    if equals:
        return inspect(text, Path(folder).expanduser().resolve())
    local = models_dir / reference.name
    if reference.revision is None and _is_model(local):
        return inspect(text, local.resolve())
    snapshot = _hub_snapshot(reference, hub_cache)
    if snapshot is None:
        raise ModelNotFound(reference=text, looked_in=f"{models_dir} and {hub_cache}")
    return inspect(text, snapshot, revision=snapshot.name)


def _with_parts(model: StoredModel, models_dir: Path, hub_cache: Path) -> StoredModel:
    """Add the folders of the models that a model needs: beside it, in the models directory, or in the hub's cache."""
    parts: dict[str, Path] = {}
    for part, name in PARTS.get(model.architecture or "", {}).items():
        beside = model.path.parent / name.rpartition("/")[2] if model.path else None
        places = [beside, models_dir / name, _hub_snapshot(parse_reference(name), hub_cache)]
        folder = next((place for place in places if place and _is_model(place)), None)
        if folder is not None:
            parts[part] = folder.resolve()
    written_ns = max([model.written_ns, *map(_written_ns, parts.values())])
    return replace(model, parts=parts, written_ns=written_ns) if parts else model


def _all_in(models_dir: Path) -> Iterator[StoredModel]:
    """Yield the models in a directory; a folder that no engine takes is no reason not to serve the others."""
    found = {path.parent for level in ("*", "*/*") for name in MARKERS for path in models_dir.glob(f"{level}/{name}")}
    whole = sorted(folder for folder in found if folder.parent not in found)  # a part of a model is no model
    for folder in whole:
        try:
            yield inspect(folder.relative_to(models_dir).as_posix(), folder.resolve())
        except InvalidReference as error:
            log.info("%s is left out: %s", folder, error)


def _taken_in(models_dir: Path) -> Iterator[StoredModel]:
    """Yield the folders that were taken in, and are as they were then, by their names with the revision."""
    for note in notes(models_dir):
        try:
            model = inspect(note.reference, (models_dir / note.reference).resolve())
        except (InvalidReference, ModelNotFound) as error:
            log.info("%s is left out: %s", note.reference, error)
            continue
        if model.revision == note.revision:
            yield replace(model, reference=str(Reference(note.reference, note.revision)))


def _managed(hub_cache: Path) -> Iterator[StoredModel]:
    """Yield the revisions of a cache that are ours; one that no engine takes is no reason not to serve the others."""
    for mark in marks(hub_cache):
        place = place_of(hub_cache, mark.reference, mark.revision)
        main = _hub_snapshot(Reference(mark.reference), hub_cache)
        names = [mark.reference] if main == place.snapshot else []
        for name in [*names, str(Reference(mark.reference, mark.revision))]:
            try:
                yield inspect(name, place.snapshot, revision=mark.revision)
            except (InvalidReference, ModelNotFound) as error:
                log.info("%s is left out: %s", place.snapshot, error)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in MARKERS)


def _hub_snapshot(reference: Reference, hub_cache: Path) -> Path | None:
    """Resolve a branch, tag or commit in the cache's layout: `models--org--name/{refs,snapshots}`."""
    repo = hub_cache / f"models--{reference.name.replace('/', '--')}"
    revision = reference.revision or "main"
    ref = repo / "refs" / revision
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision
    snapshot = repo / "snapshots" / commit
    return snapshot if _is_model(snapshot) else None


def _config(reference: str, path: Path) -> dict[str, Any]:
    """Return the snapshot's configuration."""
    marker = next((path / name for name in reversed(MARKERS) if (path / name).is_file()), path / MARKERS[0])
    try:
        return cast("dict[str, Any]", orjson.loads(marker.read_bytes()))
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelNotFound(reference=reference, looked_in=f"{path}: no readable {marker.name}") from error


def _written_ns(folder: Path) -> int:
    return max((file.stat().st_mtime_ns for file in weight_files(folder)), default=0)


def _digest(path: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(SMALL_FILE_BYTES)
        total.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode() + hashlib.sha256(head).digest())
    return f"sha256:{total.hexdigest()[:32]}"
