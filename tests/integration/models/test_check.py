"""A stored revision compared with its mark, and mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitinglip.errors import ModelNotFound
from bitinglip.models import snapshots
from bitinglip.models.check import check, drop_damaged
from bitinglip.models.layout import Place, place_of
from bitinglip.models.protocol import CheckJob, FetchJob
from tests.support.fetching import Child, fetched, job_of
from tests.support.modelhub import ModelHub
from tests.support.weights import make_gpt2, save_tensors

NAME = "lab/gpt2"


@pytest.fixture
def job(hub: ModelHub, tmp_path: Path, cache: Path) -> FetchJob:
    """A model that was fetched."""
    folder = make_gpt2(tmp_path / "model")
    save_tensors(folder / "large.safetensors", {"wte.weight": ("F32", [6_000_000])}, seed=1)
    job = job_of(hub, NAME, folder, cache)
    assert "stored" in fetched(job)
    hub.sent.clear()
    return job


@pytest.fixture
def place(job: FetchJob) -> Place:
    return place_of(job.cache_dir, NAME, job.revision)


def damage(place: Place) -> None:
    """Turn a bit in the large file, cut a small one, and take one away."""
    large = place.file("large.safetensors").resolve()
    content = bytearray(large.read_bytes())
    content[12_345_678] ^= 1
    large.write_bytes(content)
    place.file("tokenizer.json").resolve().write_text("{")
    place.file("config.json").resolve().unlink()


def checked(job: FetchJob, *, drop: bool = False) -> Child:
    of = CheckJob(reference=NAME, revision=job.revision, cache_dir=job.cache_dir, drop_damaged=drop)
    child = Child("bitinglip.models.check", of.model_dump_json())
    child.outcome()
    child.close()
    return child


def test_what_is_well_is_found_well(job: FetchJob) -> None:
    child = checked(job)
    size = sum(file.size_bytes for file in job.files)
    assert child.lines[-1] == {
        "checked": {"files": len(job.files), "checked_bytes": size, "missing": [], "damaged": []}
    }
    assert {line["progress"]["step"] for line in child.lines[:-1]} <= {"checking"}
    assert len(snapshots.marks(job.cache_dir)) == 1


def test_what_is_damaged_or_missing_is_named_and_left(job: FetchJob, place: Place) -> None:
    damage(place)
    found = checked(job).lines[-1]["checked"]
    assert found["missing"] == ["config.json"]
    assert sorted(found["damaged"]) == ["large.safetensors", "tokenizer.json"]
    assert place.file("large.safetensors").exists()
    assert place.mark.exists()


def test_what_is_damaged_is_dropped_and_fetched_anew_and_nothing_else(
    hub: ModelHub, job: FetchJob, place: Place
) -> None:
    damage(place)
    checked(job, drop=True)
    assert not place.file("large.safetensors").exists()
    assert snapshots.marks(job.cache_dir) == []
    assert "stored" in fetched(job)
    assert {path.rpartition("/")[2] for path in hub.sent} == {"large.safetensors", "tokenizer.json", "config.json"}
    assert check(job.cache_dir, NAME, job.revision).damaged == ()


def test_what_is_not_ours_is_not_checked(cache: Path) -> None:
    with pytest.raises(ModelNotFound):
        check(cache, NAME, "1" * 40)
    with pytest.raises(ModelNotFound):
        drop_damaged(cache, NAME, "1" * 40, [])
