"""Files from other nodes: handed out to who may have them, checked by who takes them, gone on with from another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import orjson
import pytest

from bitinglip.models import snapshots
from bitinglip.models.imports import FolderJob, take_in
from bitinglip.models.layout import place_of
from bitinglip.models.protocol import FetchJob, PeerSource
from bitinglip.models.sharetoken import token_for
from tests.support.fetching import Child, fetched, fetching, job_of
from tests.support.modelhub import ModelHub
from tests.support.weights import make_gpt2, save_tensors

NAME = "lab/gpt2"
SECRET = b"s" * 32
LARGE = "large.safetensors"
HALF = 12 * 2**20


class Node:
    """Another node that has a model, and hands it out."""

    def __init__(self, cache: Path, most: int = 32, models_dir: Path | None = None) -> None:
        self.cache = cache
        job = {"cache_dir": str(cache), "secret": SECRET.hex(), "most_connections": most}
        more = {} if models_dir is None else {"models_dir": str(models_dir)}
        self.child = Child("bitinglip.models.share", orjson.dumps(job | more).decode())
        port = self.child.wait_for(lambda line: "listening" in line)["listening"]["port"]
        self.url = f"http://127.0.0.1:{port}"

    def peer(self, job: FetchJob, *, token: str | None = None) -> PeerSource:
        good = token_for(SECRET, job.reference, job.revision, int(time.time()) + 60)
        return PeerSource(url=self.url, token=good if token is None else token)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = make_gpt2(tmp_path / "model")
    save_tensors(folder / LARGE, {"wte.weight": ("F32", [6_000_000])}, seed=1)
    return folder


@pytest.fixture
def job(hub: ModelHub, folder: Path, tmp_path: Path) -> FetchJob:
    """The job as the other node did it."""
    job = job_of(hub, NAME, folder, tmp_path / "other")
    assert "stored" in fetched(job)
    hub.sent.clear()
    return job


@pytest.fixture
def node(job: FetchJob) -> Iterator[Node]:
    node = Node(job.cache_dir)
    yield node
    node.child.close()


def ours(job: FetchJob, cache: Path, *peers: PeerSource) -> FetchJob:
    """The job as this node is to do it."""
    return job.model_copy(update={"cache_dir": cache, "peers": peers})


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_whole(job: FetchJob, cache: Path, folder: Path) -> None:
    assert contents(place_of(cache, NAME, job.revision).snapshot) == contents(folder)
    assert [mark.revision for mark in snapshots.marks(cache)] == [job.revision]
    assert list(cache.rglob("*.incomplete")) == []


def test_all_of_a_model_comes_from_a_peer_without_the_hub(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    hub.stop()
    stored = fetched(ours(job, cache, node.peer(job)))["stored"]
    hub.start()
    assert stored["hub_bytes"] == 0
    assert stored["peer_bytes"] == sum(file.size_bytes for file in job.files)
    assert_whole(job, cache, folder)


def test_a_peer_that_refuses_the_token_is_passed_over(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    stored = fetched(ours(job, cache, node.peer(job, token="1.2")))["stored"]
    assert stored["peer_bytes"] == 0
    assert stored["hub_bytes"] == hub.total_sent
    assert_whole(job, cache, folder)


def test_a_peer_whose_bytes_are_wrong_is_found_out(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    blob = place_of(node.cache, NAME, job.revision).file(LARGE).resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    stored = fetched(ours(job, cache, node.peer(job)))["stored"]
    assert stored["hub_bytes"] >= hub.sent[f"{NAME}/{LARGE}"] == (folder / LARGE).stat().st_size
    assert_whole(job, cache, folder)


def test_after_a_peer_that_died_another_goes_on(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    with half_peer(folder) as (url, asked):
        stored = fetched(ours(job, cache, PeerSource(url=url, token="none"), node.peer(job)))["stored"]
    assert asked == [f"/models--lab--gpt2/{job.revision}/{LARGE}"]
    assert stored["hub_bytes"] == 0
    assert stored["peer_bytes"] == sum(file.size_bytes for file in job.files)
    assert hub.total_sent == 0
    assert_whole(job, cache, folder)


def test_what_is_on_no_hub_is_not_asked_of_it_and_comes_when_a_peer_has_it(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    job = job.model_copy(update={"source": "upload"})
    with half_peer(folder) as (url, _):
        failed = fetched(ours(job, cache, PeerSource(url=url, token="none")))["failed"]
    assert (failed["code"], failed["retryable"], hub.total_sent) == ("no_holder", True, 0)
    assert fetched(ours(job, cache))["failed"]["code"] == "no_holder"
    stored = fetched(ours(job, cache, node.peer(job)))["stored"]
    assert stored["peer_bytes"] <= sum(file.size_bytes for file in job.files) - HALF
    assert (hub.total_sent, [mark.source for mark in snapshots.marks(cache)]) == (0, ["upload"])
    assert_whole(job, cache, folder)


def test_after_the_last_peer_the_hub_goes_on(hub: ModelHub, job: FetchJob, cache: Path, folder: Path) -> None:
    with half_peer(folder) as (url, _):
        stored = fetched(ours(job, cache, PeerSource(url=url, token="none")))["stored"]
    assert stored["peer_bytes"] >= HALF
    assert hub.sent[f"{NAME}/{LARGE}"] == (folder / LARGE).stat().st_size - HALF
    assert_whole(job, cache, folder)


def test_what_a_peer_sent_is_gone_on_with_by_another_process(
    hub: ModelHub, job: FetchJob, node: Node, cache: Path, folder: Path
) -> None:
    hub.fault(path=f"*/{LARGE}", stall_after=0)
    with half_peer(folder) as (url, _), fetching(ours(job, cache, PeerSource(url=url, token="none"))) as child:
        child.wait_for(lambda line: line["progress"]["done_bytes"] >= HALF)
        child.kill()
    assert len(snapshots.heal(cache).unfinished) == 1
    (part,) = cache.rglob("*.incomplete")
    have = part.stat().st_size
    stored = fetched(ours(job, cache, node.peer(job)))["stored"]
    assert have == HALF
    assert stored["peer_bytes"] <= sum(file.size_bytes for file in job.files) - HALF
    assert stored["hub_bytes"] == 0
    assert_whole(job, cache, folder)


def test_a_peer_that_knows_no_ranges_sends_all_of_it(hub: ModelHub, job: FetchJob, cache: Path, folder: Path) -> None:
    with half_peer(folder) as (one, _), half_peer(folder, most=2**40) as (other, _):
        stored = fetched(ours(job, cache, PeerSource(url=one, token="none"), PeerSource(url=other, token="none")))
    assert stored["stored"]["peer_bytes"] == sum(file.size_bytes for file in job.files) + HALF
    assert hub.total_sent == 0
    assert_whole(job, cache, folder)


def test_nothing_but_the_files_of_marks_is_handed_out(node: Node, job: FetchJob) -> None:
    place = place_of(node.cache, NAME, job.revision)
    good = {"Authorization": f"Bearer {node.peer(job).token}"}
    base = f"{node.url}/{place.repo.name}/{job.revision}"
    (place.snapshot / "other.txt").write_text("not of the mark")
    assert httpx.get(f"{base}/config.json", headers=good).content == place.file("config.json").read_bytes()
    assert httpx.get(f"{base}/config.json").status_code == 403
    for path in ("other.txt", "nothing", "..%2f..%2frefs%2fmain", "%2fetc%2fpasswd", "..%2f.bitinglip%2fstore.lock"):
        assert httpx.get(f"{base}/{path}", headers=good).status_code == 404
    for path in (f"x--{NAME}/{job.revision}", f"..%2f{place.repo.name}/{job.revision}", f"{place.repo.name}/..%2fx"):
        assert httpx.get(f"{node.url}/{path}/config.json", headers=good).status_code in {403, 404}
    place.mark.unlink()
    assert httpx.get(f"{base}/config.json", headers=good).status_code == 404


def test_of_a_folder_that_was_taken_in_nothing_but_its_files_is_handed_out(folder: Path, tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    taken = take_in(FolderJob(reference=NAME, models_dir=models_dir, path=str(folder)))
    there = models_dir / NAME
    (there / "other.txt").write_text("not of the note")
    node = Node(tmp_path / "empty", models_dir=models_dir)
    try:
        token = token_for(SECRET, NAME, taken.revision, int(time.time()) + 60)
        good = {"Authorization": f"Bearer {token}"}
        base = f"{node.url}/models--lab--gpt2/{taken.revision}"
        whole = (folder / "model.safetensors").read_bytes()
        assert httpx.get(f"{base}/model.safetensors", headers=good).content == whole
        assert httpx.get(f"{base}/config.json").status_code == 403
        for path in ("other.txt", "nothing", "..%2f..%2f.bitinglip%2flab--gpt2.json", "%2fetc%2fpasswd"):
            assert httpx.get(f"{base}/{path}", headers=good).status_code == 404
        (there / "config.json").unlink()
        (there / "config.json").symlink_to(there / ".." / ".." / ".bitinglip" / "lab--gpt2.json")
        assert httpx.get(f"{base}/config.json", headers=good).status_code == 404
        save_tensors(folder / "model.safetensors", {"x": ("F32", [10])})
        take_in(FolderJob(reference=NAME, models_dir=models_dir, path=str(folder)))  # another revision in its place
        assert httpx.get(f"{base}/model.safetensors", headers=good).status_code == 404
    finally:
        node.child.close()


def test_a_link_that_leaves_the_store_is_not_followed(node: Node, job: FetchJob, tmp_path: Path) -> None:
    place = place_of(node.cache, NAME, job.revision)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    place.file("config.json").unlink()
    place.file("config.json").symlink_to(secret)
    good = {"Authorization": f"Bearer {node.peer(job).token}"}
    assert httpx.get(f"{node.url}/{place.repo.name}/{job.revision}/config.json", headers=good).status_code == 404


def test_a_part_of_a_file_can_be_asked_for(node: Node, job: FetchJob, folder: Path) -> None:
    headers = {"Authorization": f"Bearer {node.peer(job).token}", "Range": "bytes=10-19"}
    answer = httpx.get(f"{node.url}/models--lab--gpt2/{job.revision}/{LARGE}", headers=headers)
    assert answer.status_code == 206
    assert answer.content == (folder / LARGE).read_bytes()[10:20]


def test_who_comes_beyond_the_bound_is_told_to_come_later(job: FetchJob) -> None:
    node = Node(job.cache_dir, most=2)
    good = {"Authorization": f"Bearer {node.peer(job).token}"}
    address = f"{node.url}/models--lab--gpt2/{job.revision}/{LARGE}"
    with httpx.Client() as one, httpx.Client() as two, one.stream("GET", address, headers=good) as first:
        assert first.status_code == 200
        with two.stream("GET", address, headers=good) as second:
            assert second.status_code == 503
    node.child.close()


class half_peer:
    """A peer that hands out all files, and of the large one the first bytes: then it closes the connection."""

    def __init__(self, folder: Path, most: int = HALF) -> None:
        self._folder, self._most = folder, most

    def __enter__(self) -> tuple[str, list[str]]:
        folder, most, asked = self._folder, self._most, list[str]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = (folder / self.path.split("/", 3)[3]).read_bytes()
                asked.extend([self.path] if len(content) > most else [])
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:most])
                self.close_connection = len(content) > most

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_address[1]}", asked

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
