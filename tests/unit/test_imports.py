"""Folders that are taken in as models: copied with their digests, replaced, compared, dropped; or refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bitinglip.errors import BitingLipError, ImportRefused, InvalidReference, NothingToLoad, OnlyPickles
from bitinglip.models.importnotes import notes
from bitinglip.models.imports import FolderJob, compare, drop, sweep, take_in
from bitinglip.models.layout import OURS
from bitinglip.models.store import find_models, inspect
from tests.support.weights import make_gpt2, save_json

NAME = "lab/tuned"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_gpt2(tmp_path / "source")


def job(models_dir: Path, source: Path | str | None, name: str = NAME) -> FolderJob:
    return FolderJob(reference=name, models_dir=models_dir, path=None if source is None else str(source))


def test_what_engines_load_is_copied_and_described(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    described = take_in(job(models, source))
    copied = {file.relative_to(models / NAME).as_posix() for file in (models / NAME).rglob("*") if file.is_file()}
    assert copied == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    assert {file.path: file.sha256 for file in described.files} == {
        path: hashlib.sha256((source / path).read_bytes()).hexdigest() for path in copied
    }
    assert (described.source, described.kind, described.parameters) == ("import", "text-generation", 1000)
    assert described.revision == inspect(NAME, models / NAME).revision
    assert list((models / OURS).glob("importing/*")) == []


def test_it_is_served_by_its_name_and_by_its_revision_as_long_as_it_is_as_it_was(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    revision = take_in(job(models, source)).revision
    assert [model.reference for model in find_models([], models, tmp_path)] == ["echo", NAME, f"{NAME}@{revision}"]
    save_json(models / NAME / "generation_config.json", {"top_k": 1})
    assert [model.reference for model in find_models([], models, tmp_path)] == ["echo", NAME]


def test_another_one_takes_its_place(tmp_path: Path, source: Path) -> None:
    models, other = tmp_path / "models", make_gpt2(tmp_path / "other", seed=1)
    (source / "merges.txt").write_text("#")
    first, second = take_in(job(models, source)), take_in(job(models, other))
    assert first.revision != second.revision
    assert [note.revision for note in notes(models)] == [second.revision]
    assert not (models / NAME / "merges.txt").exists()


def test_what_was_put_there_by_hand_stays(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    kept = make_gpt2(models / NAME, seed=2) / "model.safetensors"
    before = kept.read_bytes()
    with pytest.raises(ImportRefused, match="was not taken in"):
        take_in(job(models, source))
    assert kept.read_bytes() == before


def test_what_is_no_model_is_refused_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    pickles, nothing, torn = (make_gpt2(tmp_path / name) for name in ("pickles", "nothing", "torn"))
    (pickles / "model.safetensors").unlink()
    (nothing / "config.json").unlink()
    (torn / "model.safetensors").write_bytes(b"no header")
    unknown = make_gpt2(tmp_path / "unknown")
    save_json(unknown / "config.json", {"architectures": ["NobodysModelForNothing"]})
    refused: list[tuple[Path | str, type[BitingLipError]]] = [
        (pickles, OnlyPickles),
        (nothing, NothingToLoad),
        (torn, ImportRefused),
        (unknown, InvalidReference),
        (tmp_path / "none", ImportRefused),
        (source / "config.json", ImportRefused),
        ("relative", ImportRefused),
    ]
    for folder, error in refused:
        with pytest.raises(error):
            take_in(job(models, folder))
    with pytest.raises(ImportRefused, match="without one"):
        take_in(job(models, source, name="lab/tuned@1"))
    with pytest.raises(InvalidReference):
        take_in(job(models, source, name="../tuned"))
    assert notes(models) == []
    assert [path for path in models.rglob("*") if path.is_file()] == []


def test_damage_is_found(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    take_in(job(models, source))
    found = compare(job(models, None))
    assert (found.files, found.missing, found.damaged) == (4, (), ())
    weights = models / NAME / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (models / NAME / "tokenizer.json").unlink()
    found = compare(job(models, None))
    assert (found.missing, found.damaged) == (("tokenizer.json",), ("model.safetensors",))


def test_it_is_dropped_as_a_whole(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    size = take_in(job(models, source)).size_bytes
    assert drop(models, NAME) == size
    assert notes(models) == []
    assert not (models / NAME).exists()


def test_what_a_crash_left_is_swept(tmp_path: Path, source: Path) -> None:
    models = tmp_path / "models"
    make_gpt2(models / OURS / "importing" / "1234" / "new")
    assert [model.reference for model in find_models([], models, tmp_path)] == ["echo"]
    sweep(models)
    assert not (models / OURS / "importing").exists()
    assert source.is_dir()
