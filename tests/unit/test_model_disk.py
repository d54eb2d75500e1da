"""What models take on a node's disk, and what of it may go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bitinglip.models import snapshots
from bitinglip.models.layout import digest_of, place_of
from bitinglip.models.state import Key
from bitinglip.settings import Models
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.inuse import InUse
from bitinglip.workers.modeldisk import GIB, ModelDisk
from bitinglip.workers.modelplan import Disk
from tests.support.fetching import files_in
from tests.support.weights import make_gpt2

KEY: Key = ("org/a", "1" * 40)


@pytest.fixture
def disk(tmp_path: Path) -> ModelDisk:
    return ModelDisk(Models(hub_cache=tmp_path / "hub", disk_gb=1000 / GIB, min_free_gb=0), tmp_path / "models")


def stored(disk: ModelDisk, key: Key, numbers: int = 10) -> None:
    """Put a revision into the store as a fetch does."""
    place = place_of(disk.cache_dir, *key)
    files = files_in(make_gpt2(place.snapshot, numbers))
    snapshots.mark(disk.cache_dir, *key, files, "hub")


def test_what_is_there_is_told_by_its_marks(disk: ModelDisk) -> None:
    assert disk.look() == Disk()
    stored(disk, KEY)
    other = place_of(disk.cache_dir, "org/b", "2" * 40)
    snapshots.intend(other, files_in(place_of(disk.cache_dir, *KEY).snapshot))
    found = disk.look()
    assert list(found.stored) == [KEY]
    assert found.unfinished == {("org/b", "2" * 40)}


def test_what_has_come_in_part_has_not_to_come_again(disk: ModelDisk, tmp_path: Path) -> None:
    files = files_in(make_gpt2(tmp_path / "source", 1000))
    size = sum(file.size_bytes for file in files)
    assert disk.missing_bytes(KEY, files) == size
    place = place_of(disk.cache_dir, *KEY)
    weights = next(file for file in files if file.sha256)
    part = place.partial(digest_of(weights) or "")
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(100))
    assert disk.missing_bytes(KEY, files) == size - 100
    make_gpt2(place.snapshot, 1000)
    assert disk.missing_bytes(KEY, files) == 0


async def test_what_a_worker_has_in_memory_does_not_go_until_it_is_dropped(disk: ModelDisk) -> None:
    stored(disk, KEY)
    folder = place_of(disk.cache_dir, *KEY).snapshot
    spec = ModelSpec(kind="text-generation", reference="org/a", revision=KEY[1], path=str(folder))
    elsewhere = ModelSpec(kind="echo", reference="echo")
    used = InUse()
    await used.begin(elsewhere)
    await used.begin(spec)
    used.keep([spec.key])
    assert [each.in_use for each in disk.stored((), (), ())] == [True]
    used.keep([])
    assert [each.in_use for each in disk.stored((), (), ())] == [False]


def test_pinned_and_needed_ones_do_not_go(disk: ModelDisk) -> None:
    other, third = ("org/b", "2" * 40), ("org/c", "3" * 40)
    for key in (KEY, other, third):
        stored(disk, key)
    found = {each.reference: (each.pinned, each.in_use) for each in disk.stored({KEY}, {other}, ())}
    assert found == {"org/a": (True, False), "org/b": (False, True), "org/c": (False, False)}
    size = disk.look().stored[KEY]
    disk = ModelDisk(Models(hub_cache=disk.cache_dir, disk_gb=3 * size / GIB, min_free_gb=0), disk.models_dir)
    later = datetime.now(UTC) + timedelta(days=1)
    chosen = disk.evictions(disk.stored({KEY}, {other}, ()), size, 0, later)
    assert [each.reference for each in chosen.drop] == ["org/c"]
    assert disk.evictions(disk.stored({KEY}, {other}, ()), size + 1, 0, later).refused
    assert disk.evictions(disk.stored({KEY}, {other}, ()), size, 1, later).refused
