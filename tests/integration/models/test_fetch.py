"""A fetch in a process of its own, from a hub over HTTP: what it brings, what it spares, and how it fails."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from bitinglip.events.model import ModelFile
from bitinglip.models import snapshots
from bitinglip.models.layout import place_of
from tests.support.fetching import Child, fetched, fetching, files_in, job_of
from tests.support.modelhub import ModelHub
from tests.support.weights import make_gpt2, save_tensors

NAME = "lab/gpt2"
LARGE = 6_000_000
"""Numbers of a tensor whose file is large enough that its parts are kept."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model with a small file of weights, and a large one."""
    folder = make_gpt2(tmp_path / "model")
    save_tensors(folder / "large.safetensors", {"wte.weight": ("F32", [LARGE])}, seed=1)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def left_over(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.name.endswith((".incomplete", ".tmp", ".part.json"))]


def test_a_revision_is_stored_checked_and_marked(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache, asked_revision="main")
    with fetching(job) as child:
        stored = child.outcome()["stored"]
    place = place_of(cache, NAME, job.revision)
    assert contents(place.snapshot) == contents(folder)
    (mark,) = snapshots.marks(cache)
    assert {file.path: file.sha256 for file in mark.files} == {
        path: hashlib.sha256(content).hexdigest() for path, content in contents(folder).items()
    }
    assert stored["files"] == [file.model_dump() for file in mark.files]
    assert stored["hub_bytes"] == mark.size_bytes == hub.total_sent
    assert stored["peer_bytes"] == 0
    assert (place.repo / "refs" / "main").read_text() == job.revision
    assert left_over(cache) == []
    told = [line["progress"] for line in child.lines[:-1]]
    assert told[-1]["done_bytes"] == told[-1]["total_bytes"] == mark.size_bytes
    assert [each["done_bytes"] for each in told] == sorted(each["done_bytes"] for each in told)


def test_the_hubs_own_client_finds_what_was_fetched(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache, asked_revision="main")
    assert "stored" in fetched(job)
    sent = hub.total_sent
    found = snapshot_download(NAME, endpoint=hub.endpoint, cache_dir=cache)
    assert Path(found) == place_of(cache, NAME, job.revision).snapshot
    assert hub.total_sent == sent


def test_what_the_hubs_own_client_fetched_is_adopted(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    snapshot_download(NAME, endpoint=hub.endpoint, cache_dir=cache)
    sent = hub.total_sent
    outcome = fetched(job)
    assert outcome["stored"]["hub_bytes"] == 0
    assert hub.total_sent == sent
    assert len(snapshots.marks(cache)) == 1


def test_what_is_stored_is_not_fetched_again(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    assert "stored" in fetched(job)
    hub.stop()
    assert fetched(job)["stored"]["hub_bytes"] == 0
    hub.start()


def test_killed_in_the_middle_it_goes_on_where_it_was(hub: ModelHub, folder: Path, cache: Path) -> None:
    save_tensors(folder / "larger.safetensors", {"wte.weight": ("F32", [LARGE + 1])}, seed=2)
    job = job_of(hub, NAME, folder, cache, parallel=1)  # the largest comes first
    whole = (folder / "larger.safetensors").stat().st_size
    stalling = hub.fault(path="*/large.safetensors", stall_after=21 * 2**20)
    with fetching(job) as child:
        child.wait_for(lambda line: line["progress"]["done_bytes"] >= whole + 20 * 2**20)
        child.kill()
    hub.mend(stalling)
    before = hub.sent.copy()
    (part,) = [path.stat().st_size for path in cache.rglob("*.bitinglip.incomplete")]
    (unfinished,) = snapshots.heal(cache).unfinished
    assert unfinished.revision == job.revision
    assert "stored" in fetched(job)
    again = hub.sent - before
    assert f"{NAME}/larger.safetensors" not in again
    assert again.total() == sum(file.size_bytes for file in job.files) - whole - part
    assert part >= 20 * 2**20
    assert left_over(cache) == []


def test_killed_again_and_again_it_comes_to_its_end(hub: ModelHub, folder: Path, cache: Path) -> None:
    for number in range(3):
        save_tensors(folder / f"more-{number}.safetensors", {"wte.weight": ("F32", [LARGE])}, seed=3 + number)
    job = job_of(hub, NAME, folder, cache, parallel=2)
    total, kills = sum(file.size_bytes for file in job.files), 6
    slow = hub.fault(path="*.safetensors", bytes_per_s=30_000_000)
    for kill in range(1, kills + 1):
        with fetching(job) as child:
            child.wait_for(lambda line, least=total * kill // (kills + 1): line["progress"]["done_bytes"] >= least)
            child.kill()
        assert snapshots.marks(cache) == []
    hub.mend(slow)
    assert "stored" in fetched(job)
    assert contents(place_of(cache, NAME, job.revision).snapshot) == contents(folder)
    assert hub.total_sent <= total + kills * job.parallel * 8 * 2**20  # what was under way: sockets hold some of it
    assert left_over(cache) == []


def test_orphans_of_the_client_are_swept(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    blobs = place_of(cache, NAME, job.revision).blobs
    blobs.mkdir(parents=True)
    (blobs / f"{'a' * 40}.0123abcd.incomplete").write_bytes(b"left by a crash")
    assert "stored" in fetched(job)
    assert left_over(cache) == []


def test_a_connection_that_is_cut_is_gone_on_with(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    hub.fault(path="*/large.safetensors", cut_after=11 * 2**20, times=1)
    assert "stored" in fetched(job)
    assert contents(place_of(cache, NAME, job.revision).snapshot) == contents(folder)
    assert hub.sent[f"{NAME}/large.safetensors"] < 1.2 * (folder / "large.safetensors").stat().st_size


def test_a_fault_of_the_hub_that_passes_is_waited_for(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    hub.fault(path="*/large.safetensors", status=500, times=2)
    assert "stored" in fetched(job)


def test_a_file_that_comes_wrong_once_is_fetched_once_more(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    for path in ("*/large.safetensors", "*/model.safetensors", "*/config.json"):
        hub.fault(path=path, wrong=True, times=1)
    assert "stored" in fetched(job)
    assert contents(place_of(cache, NAME, job.revision).snapshot) == contents(folder)


@pytest.mark.parametrize("path", ["large.safetensors", "config.json"])
def test_a_file_that_comes_wrong_twice_is_not_kept(hub: ModelHub, folder: Path, cache: Path, path: str) -> None:
    job = job_of(hub, NAME, folder, cache)
    hub.fault(path=f"*/{path}", wrong=True)
    failed = fetched(job)["failed"]
    assert failed["code"] == "checksum_mismatch"
    assert path in failed["message"]
    place = place_of(cache, NAME, job.revision)
    assert not place.file(path).exists()
    assert snapshots.marks(cache) == []
    hub.mend()
    assert "stored" in fetched(job)


def test_one_that_is_told_to_stop_says_so_and_is_gone_on_with(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    hub.fault(path="*/large.safetensors", stall_after=11 * 2**20)
    with fetching(job) as child:
        child.wait_for(lambda line: line.get("progress", {}).get("done_bytes", 0) > 10_000_000)
        child.process.send_signal(signal.SIGTERM)
        stopped = child.outcome()["stopped"]
    assert stopped["done_bytes"] > 10_000_000
    assert snapshots.marks(cache) == []
    sent = hub.total_sent
    hub.mend()
    assert "stored" in fetched(job)
    assert hub.total_sent - sent < (folder / "large.safetensors").stat().st_size - 10_000_000


def test_a_revision_is_fetched_by_one_process_at_a_time(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    stalling = hub.fault(path="*/large.safetensors", stall_after=0)
    with fetching(job) as first:
        first.wait_for(lambda line: "progress" in line)
        failed = fetched(job)["failed"]
        assert failed["code"] == "fetch_taken"
        assert failed["retryable"]
        hub.mend(stalling)
        assert "stored" in first.outcome()


def test_it_ends_with_its_parent(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    hub.fault(path="*/large.safetensors", stall_after=0)
    script = (
        "import os, subprocess, sys\n"
        "from bitinglip.processes import before_exec\n"
        "command = [sys.executable, '-m', 'bitinglip.models.fetch']\n"
        "child = subprocess.Popen(command, stdin=subprocess.PIPE, preexec_fn=before_exec())\n"
        "child.stdin.write(sys.argv[1].encode() + b'\\n'); child.stdin.flush()\n"
        "os._exit(0)\n"
    )
    command = [sys.executable, "-c", script, job.model_dump_json()]
    parent = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=40, check=True)
    assert "stored" not in parent.stdout  # and its end came: nobody has the pipe open any more
    assert "failed" not in parent.stdout


def test_no_room_is_said_before_anything_travels(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache, min_free_bytes=2**60)
    failed = fetched(job)["failed"]
    assert failed["code"] == "disk_full"
    assert "remedy" in failed
    assert hub.total_sent == 0


def test_a_disk_that_gets_full_is_said(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (12 * 2**20, 12 * 2**20))

    with fetching(job, little_room) as child:
        assert child.outcome()["failed"]["code"] == "disk_full"


@pytest.mark.parametrize("path", ["../out.json", "/etc/out.json", "a//b", "a/../../../b", "a\\b"])
def test_a_path_that_leaves_the_folder_is_refused(hub: ModelHub, folder: Path, cache: Path, path: str) -> None:
    job = job_of(hub, NAME, folder, cache, files=(ModelFile(path=path, size_bytes=1, sha256="a" * 64),))
    assert fetched(job)["failed"]["code"] == "unsafe_repository"
    assert list(cache.iterdir()) == []


def test_a_branch_that_leaves_the_folder_is_refused(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache, asked_revision="../../main")
    assert fetched(job)["failed"]["code"] == "unsafe_repository"


def test_a_gated_model_says_what_to_do_and_comes_with_the_token(hub: ModelHub, folder: Path, cache: Path) -> None:
    hub.add(NAME, folder, gated="manual", tokens={"hf_ours"})
    job = job_of(hub, NAME, folder, cache)
    failed = fetched(job, HF_TOKEN="")["failed"]
    assert failed["code"] == "model_gated"
    assert "HF_TOKEN" in failed["remedy"]
    assert not failed["retryable"]
    assert "stored" in fetched(job, HF_TOKEN="hf_ours")


def test_a_model_or_revision_that_is_not_there_is_said(hub: ModelHub, folder: Path, cache: Path) -> None:
    job = job_of(hub, NAME, folder, cache)
    gone = job.model_copy(update={"reference": "lab/nothing"})
    assert fetched(gone, HF_TOKEN="hf_any")["failed"]["code"] == "model_not_on_hub"
    other = job.model_copy(update={"revision": "b" * 40})
    assert fetched(other)["failed"]["code"] == "revision_not_on_hub"


def test_a_hub_that_does_not_answer_is_tried_again_later(hub: ModelHub, folder: Path, cache: Path) -> None:
    large = tuple(file for file in files_in(folder) if file.path == "large.safetensors")
    job = job_of(hub, NAME, folder, cache, files=large)
    hub.fault(path="*", status=503)
    failed = fetched(job)["failed"]
    assert failed["code"] == "hub_unreachable"
    assert failed["retryable"]
    assert failed["retry_after_s"] > 0


def test_a_job_that_cannot_be_read_is_said() -> None:
    child = Child("bitinglip.models.fetch", '{"reference": 1}')
    assert child.outcome()["failed"]["code"] == "invalid_input"
    child.close()


def test_two_revisions_at_once_fetch_a_file_that_they_share_once(hub: ModelHub, folder: Path, cache: Path) -> None:
    one = job_of(hub, NAME, folder, cache)
    (folder / "new.json").write_text("[1]")
    two = job_of(hub, NAME, folder, cache)
    slow = hub.fault(path="*/large.safetensors", bytes_per_s=20_000_000)
    with fetching(one) as first, fetching(two) as second:
        assert "stored" in first.outcome()
        assert "stored" in second.outcome()
    hub.mend(slow)
    assert hub.sent[f"{NAME}/large.safetensors"] == (folder / "large.safetensors").stat().st_size
    assert snapshots.drop(cache, NAME, one.revision) == 0
    assert contents(place_of(cache, NAME, two.revision).snapshot) == contents(folder)


def test_large_files_that_lie_elsewhere_are_fetched_from_there(folder: Path, cache: Path) -> None:
    with ModelHub(redirects=True) as hub:
        hub.add(NAME, folder, gated="manual", tokens={"hf_ours"})
        job = job_of(hub, NAME, folder, cache)
        assert "stored" in fetched(job, HF_TOKEN="hf_ours")
        assert any(asked.startswith("GET /cdn/") for asked in hub.asked)
    assert contents(place_of(cache, NAME, job.revision).snapshot) == contents(folder)
