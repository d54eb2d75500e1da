"""The managed store on a real disk: marks, locks, removal that a crash may cut anywhere, and healing."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from bitinglip.errors import InvalidReference, ModelInUse, StoreReadOnly, UnsafeRepository
from bitinglip.models import snapshots
from bitinglip.models.layout import Place, place_of
from bitinglip.models.locks import exclusively
from tests.support.stores import point, put, tree

NAME, ONE, TWO = "org/name", "1" * 40, "2" * 40
SHARED = {"model.safetensors": b"w" * 1000}
CONFIG = {"sub/config.json": b"{}"}
CHANGES = {"os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "open", "os.mkdir", "os.utime"}
"""What the interpreter tells of before a program changes files."""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_mark_tells_what_is_there_and_when_it_was_used(cache: Path) -> None:
    put(cache, NAME, ONE, SHARED | CONFIG)
    (mark,) = snapshots.marks(cache)
    assert (mark.reference, mark.revision, mark.source) == (NAME, ONE, "hub")
    assert mark.size_bytes == 1002
    assert datetime.now(UTC) - mark.last_used < timedelta(minutes=1)
    os.utime(place_of(cache, NAME, ONE).mark, (1, 1))
    assert snapshots.marks(cache)[0].last_used == datetime.fromtimestamp(1, UTC)
    snapshots.touch(cache, NAME, ONE)
    assert snapshots.marks(cache)[0].last_used > mark.stored_at - timedelta(seconds=1)


def test_what_others_fetched_has_no_mark_and_cannot_be_dropped(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED, ours=False)
    snapshots.touch(cache, NAME, ONE)
    assert snapshots.marks(cache) == []
    assert snapshots.drop(cache, NAME, ONE) == 0
    assert place.file("model.safetensors").exists()


def test_a_mark_that_cannot_be_read_is_none(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED)
    place.mark.write_text("{")
    assert snapshots.marks(cache) == []
    assert snapshots.heal(cache).missing == ()


def test_a_revision_with_a_digest_for_a_name_is_kept_as_any(cache: Path) -> None:
    put(cache, "lab/tuned", "sha256:abc", SHARED)
    assert [mark.revision for mark in snapshots.marks(cache)] == ["sha256:abc"]
    assert snapshots.drop(cache, "lab/tuned", "sha256:abc") == 1000


@pytest.mark.parametrize(("reference", "revision"), [("../x", ONE), ("a/b/c", ONE), (NAME, "../x"), (NAME, "a/b")])
def test_names_that_leave_the_cache_are_refused(cache: Path, reference: str, revision: str) -> None:
    with pytest.raises(InvalidReference):
        place_of(cache, reference, revision)


def test_paths_that_leave_the_snapshot_are_refused(cache: Path) -> None:
    for path in ("", "..", "../x", "/x", "a/../../x", "a//x", "./x", "a\\..\\x", "a\0"):
        with pytest.raises(UnsafeRepository):
            place_of(cache, NAME, ONE).file(path)


def test_the_last_revision_takes_the_models_folder_along(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED | CONFIG)
    point(place, "main")
    point(place, "pr/1")
    assert snapshots.drop(cache, NAME, ONE) == 1002
    assert tree(cache) == set()


def test_a_revision_leaves_what_another_shares(cache: Path) -> None:
    one = put(cache, NAME, ONE, SHARED | CONFIG)
    two = put(cache, NAME, TWO, SHARED | {"new.json": b"[]"}, ours=False)
    point(one, "old")
    point(two, "main")
    before = tree(cache)
    assert snapshots.drop(cache, NAME, ONE) == 2
    assert two.file("model.safetensors").read_bytes() == SHARED["model.safetensors"]
    assert all(ONE not in path for path in tree(cache))
    gone = {path for path in before - tree(cache) if "blobs/" in path}
    assert len(gone) == 1
    assert (two.repo / "refs/main").exists()
    assert not (one.repo / "refs/old").exists()


def test_contents_that_a_fetch_counts_on_are_left(cache: Path) -> None:
    put(cache, NAME, ONE, SHARED)
    (mark,) = snapshots.marks(cache)
    snapshots.intend(place_of(cache, NAME, TWO), mark.files)
    assert snapshots.drop(cache, NAME, ONE) == 0
    assert (place_of(cache, NAME, ONE).blobs / str(mark.files[0].sha256)).exists()
    assert snapshots.drop(cache, NAME, TWO) == 1000
    assert tree(cache) == set()


def test_contents_in_the_store_that_models_share_go_with_their_last_user(cache: Path) -> None:
    from huggingface_hub.utils import _shared_blobs as shared

    content, xet_hash = SHARED["model.safetensors"], "f" * 64
    for name in (NAME, "org/copy"):
        place = put(cache, name, ONE, SHARED)
        (blob,) = place.blobs.iterdir()
        assert shared.publish_blob_to_shared_store(
            blob_path=str(blob), xet_hash=xet_hash, cache_dir=cache, expected_size=len(content)
        )
        assert blob.is_symlink()
    assert snapshots.drop(cache, NAME, ONE) == 0
    assert place_of(cache, "org/copy", ONE).file("model.safetensors").read_bytes() == content
    assert snapshots.drop(cache, "org/copy", ONE) == len(content)
    assert not shared.shared_blob_path(cache, xet_hash).exists()


def test_what_is_in_use_is_not_dropped_until_its_users_end(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED)
    with snapshots.in_use(cache, NAME, ONE), snapshots.in_use(cache, NAME, ONE):
        with pytest.raises(ModelInUse):
            snapshots.drop(cache, NAME, ONE)
        assert place.file("model.safetensors").exists()
        assert place.mark.exists()
    assert snapshots.drop(cache, NAME, ONE) == 1000


def test_who_only_looks_whether_it_is_in_use_keeps_nothing(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED)
    held, look_is_over = threading.Event(), threading.Event()

    def look() -> None:
        with exclusively(place.lock):
            held.set()
            look_is_over.wait()

    looker = threading.Thread(target=look)
    looker.start()
    held.wait()
    threading.Timer(0.05, look_is_over.set).start()
    assert snapshots.drop(cache, NAME, ONE) == 1000
    looker.join()


def test_a_use_ends_with_its_process(cache: Path) -> None:
    put(cache, NAME, ONE, SHARED)
    ready, told = os.pipe()

    def use() -> None:
        with snapshots.in_use(cache, NAME, ONE):
            os.write(told, b".")
            signal.pause()

    user = forked(use)
    os.read(ready, 1)
    with pytest.raises(ModelInUse):
        snapshots.drop(cache, NAME, ONE)
    os.kill(user, signal.SIGKILL)
    os.waitpid(user, 0)
    assert snapshots.drop(cache, NAME, ONE) == 1000


def test_a_use_of_what_has_no_folder_keeps_nothing(cache: Path) -> None:
    with snapshots.in_use(cache, "lab/local", "sha256:abc"):
        pass
    assert not cache.exists()


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with exclusively(lock) as one:
        lock.unlink()
        with exclusively(lock) as other:
            assert (one, other) == (True, True)
        with exclusively(lock) as third:
            assert third


@pytest.mark.parametrize("other", [False, True])
def test_a_removal_that_is_killed_anywhere_is_finished(tmp_path: Path, other: bool) -> None:
    for step in range(1, 1000):
        cache = tmp_path / str(step)
        place = put(cache, NAME, ONE, SHARED | CONFIG)
        point(place, "main")
        if other:
            put(cache, NAME, TWO, SHARED)
        child = forked(partial(drop_killed_at, step, cache))
        died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert_all_or_nothing(cache, place, other)
        if not died:
            assert step > 10, "the removal was not cut at all"
            return
        assert died == -signal.SIGKILL
    pytest.fail("the removal did not come to its end")


def assert_all_or_nothing(cache: Path, place: Place, other: bool) -> None:
    """What can be loaded is whole at any time; and after healing, all of it is there and ours, or nothing is."""
    if place.snapshot.exists():
        assert all(place.file(path).read_bytes() == content for path, content in (SHARED | CONFIG).items())
    healed = snapshots.heal(cache)
    assert healed.missing == ()
    if place.mark.exists():
        assert all(place.file(path).read_bytes() == content for path, content in (SHARED | CONFIG).items())
        assert snapshots.drop(cache, NAME, ONE) == (2 if other else 1002)
    assert not any(ONE in path for path in tree(cache))
    if other:
        (mark,) = snapshots.marks(cache)
        assert place_of(cache, NAME, TWO).file("model.safetensors").read_bytes() == SHARED["model.safetensors"]
        assert mark.revision == TWO
        snapshots.drop(cache, NAME, TWO)
    assert tree(cache) <= {"models--org--name"}  # killed before its very last step, it leaves an empty folder


def test_a_mark_whose_files_were_taken_away_is_told_as_missing(cache: Path) -> None:
    whole, half, gone = (put(cache, f"org/{name}", ONE, SHARED | CONFIG) for name in ("whole", "half", "gone"))
    half.file("model.safetensors").resolve().unlink()
    for file in [*gone.snapshot.rglob("*"), *gone.blobs.iterdir()]:
        if not file.is_dir():
            file.unlink()
    (gone.snapshot / "sub").rmdir()
    gone.snapshot.rmdir()
    healed = snapshots.heal(cache)
    assert {mark.reference for mark in healed.missing} == {"org/half", "org/gone"}
    assert [intent.reference for intent in healed.unfinished] == ["org/half"]
    assert [mark.reference for mark in snapshots.marks(cache)] == ["org/whole"]
    assert snapshots.heal(cache).missing == ()
    assert snapshots.drop(cache, "org/half", ONE) == 2
    assert whole.file("model.safetensors").exists()


def test_what_a_crash_left_is_swept_and_what_is_gone_on_with_stays(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED)
    (mark,) = snapshots.marks(cache)
    wanted = mark.files[0].model_copy(update={"sha256": "c" * 64})
    snapshots.intend(place_of(cache, NAME, TWO), (wanted,))
    orphan = place.blobs / f"{'a' * 64}.01234567.incomplete"
    downloading = place.blobs / f"{'b' * 64}.01234567.incomplete"
    ours, forgotten = place.partial("c" * 64), place.partial("d" * 64)
    for part in (orphan, downloading, ours, forgotten):
        part.write_bytes(b"12345")
    (place.ours / "x.json.0123.tmp").touch()
    lock = place.blob_lock("b" * 64)
    lock.parent.mkdir(parents=True)
    with exclusively(lock):
        healed = snapshots.heal(cache)
    assert healed.swept_bytes == 10
    assert [part.exists() for part in (orphan, downloading, ours, forgotten)] == [False, True, True, False]
    assert list(place.ours.glob("*.tmp")) == []
    assert [intent.revision for intent in healed.unfinished] == [TWO]


def test_a_fetch_that_goes_on_is_not_told_as_unfinished(cache: Path) -> None:
    place = place_of(cache, NAME, ONE)
    snapshots.intend(place, ())
    with exclusively(place.fetch_lock):
        assert snapshots.heal(cache).unfinished == ()
        with pytest.raises(ModelInUse):
            snapshots.drop(cache, NAME, ONE)
    assert len(snapshots.heal(cache).unfinished) == 1


def test_usage_counts_each_content_once(cache: Path) -> None:
    place = put(cache, NAME, ONE, SHARED)
    put(cache, NAME, TWO, SHARED | CONFIG)
    put(cache, "org/other", ONE, SHARED, ours=False)
    place.partial("c" * 64).write_bytes(b"123")
    usage = snapshots.du(cache)
    assert (usage.marked_bytes, usage.other_bytes, usage.partial_bytes) == (1002, 1000, 3)
    assert usage.free_bytes > 0


def test_a_store_that_is_not_there_yet_is_empty(cache: Path) -> None:
    assert snapshots.marks(cache) == []
    assert snapshots.heal(cache) == snapshots.Healed()
    assert snapshots.du(cache).marked_bytes == 0
    assert not cache.exists()


def forked(work: Callable[[], object]) -> int:
    """Do something in a process of its own; returns its id. It ends with status 0 when it is done."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def drop_killed_at(step: int, cache: Path) -> None:
    """Drop, and have this process killed before the change of a file that has this number."""
    steps: Iterator[int] = iter(range(1, step))

    def count(name: str, _: object) -> None:
        if name in CHANGES and next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    snapshots.drop(cache, NAME, ONE)


def test_a_store_that_cannot_be_written_is_used_and_left_as_it_is() -> None:
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache"
        place = put(cache, NAME, ONE, SHARED)
        put(cache, "org/half", ONE, CONFIG).file("sub/config.json").resolve().unlink()
        os.utime(place.mark, (1, 1))
        before = tree(cache)
        for folder in (*(path for path in cache.rglob("*") if path.is_dir()), cache, cache.parent):
            folder.chmod(0o555)
        status = os.waitpid(forked(partial(use_as_guest, cache)), 0)[1]
        for folder in (cache.parent, cache, *(path for path in cache.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        assert os.waitstatus_to_exitcode(status) == 0
        assert tree(cache) == before
        assert place.mark.stat().st_mtime == 1


def use_as_guest(cache: Path) -> None:
    """Use a store without the right to write it."""
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    assert snapshots.read_only(cache)
    assert len(snapshots.marks(cache)) == 2
    snapshots.touch(cache, NAME, ONE)
    with snapshots.in_use(cache, NAME, ONE):
        pass
    healed = snapshots.heal(cache)
    assert healed.read_only
    assert [mark.reference for mark in healed.missing] == ["org/half"]
    for change in (
        partial(snapshots.drop, cache, NAME, ONE),
        partial(snapshots.mark, cache, NAME, TWO, (), "hub"),
        partial(snapshots.intend, place_of(cache, "org/new", ONE), ()),
    ):
        with pytest.raises(StoreReadOnly):
            change()
