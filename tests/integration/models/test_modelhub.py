"""The hub of the tests speaks what the real client asks."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.support.modelhub import ModelHub
from tests.support.weights import make_gpt2, save_tensors

NAME = "org/small"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_gpt2(tmp_path / "small")


def fetch(hub: ModelHub, cache: Path, *, revision: str | None = None, token: str | bool = False) -> Path:
    return Path(snapshot_download(NAME, revision=revision, endpoint=hub.endpoint, cache_dir=cache, token=token))


def test_a_snapshot_is_what_lies_in_the_folder(hub: ModelHub, folder: Path, cache: Path) -> None:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{ }")
    commit = hub.add(NAME, folder)
    snapshot = fetch(hub, cache)
    assert snapshot.name == commit
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {path.relative_to(snapshot): path.read_bytes() for path in snapshot.rglob("*") if path.is_file()}
    assert hub.sent == {f"{NAME}/{path.as_posix()}": len(content) for path, content in files.items()}
    hub.asked.clear()
    assert fetch(hub, cache, revision=commit) == snapshot
    assert not hub.asked, "what is there by its commit is not asked for"


def test_large_files_may_lie_elsewhere(folder: Path, cache: Path) -> None:
    with ModelHub(redirects=True) as hub:
        hub.add(NAME, folder, gated=True, tokens=frozenset({"t"}))
        snapshot = fetch(hub, cache, token="t")
    assert (snapshot / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert any(path.startswith("GET /cdn/") for path in hub.asked)


def test_a_model_is_told_of_with_sizes_and_digests(hub: ModelHub, folder: Path) -> None:
    hub.add(NAME, folder, licence="mit", tags=["small"], pipeline_tag="text-generation", downloads=7, likes=3)
    info = HfApi(endpoint=hub.endpoint, token=False).model_info(NAME, files_metadata=True)
    assert (info.downloads, info.likes, info.gated, info.pipeline_tag) == (7, 3, False, "text-generation")
    assert info.tags == ["small", "safetensors", "license:mit"]
    assert info.card_data is not None
    assert info.card_data["license"] == "mit"
    files = {file.rfilename: file for file in info.siblings or []}
    weights, config = files["model.safetensors"], files["config.json"]
    assert weights.lfs is not None
    assert weights.lfs.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    content = (folder / "config.json").read_bytes()
    assert config.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    assert (config.lfs, config.size) == (None, len(content))


def test_a_tree_comes_page_by_page(folder: Path) -> None:
    with ModelHub(page=2) as hub:
        hub.add(NAME, folder)
        tree = list(HfApi(endpoint=hub.endpoint, token=False).list_repo_tree(NAME, recursive=True))
    assert {entry.path for entry in tree} == {path.name for path in folder.iterdir()}
    assert hub.asked[f"GET /api/models/{NAME}/tree/main"] == 3


def test_headers_come_without_the_weights(hub: ModelHub, tmp_path: Path) -> None:
    make_gpt2(tmp_path / "large", numbers=1_000_000)
    hub.add(NAME, tmp_path / "large")
    metadata = HfApi(endpoint=hub.endpoint, token=False).get_safetensors_metadata(NAME)
    assert metadata.parameter_count == {"F32": 1_000_000}
    assert hub.sent[f"{NAME}/model.safetensors"] == 100_001
    assert HfApi(endpoint=hub.endpoint, token=False).model_info(NAME).safetensors is not None


def test_models_are_found_and_sorted(hub: ModelHub, folder: Path) -> None:
    for number in range(5):
        hub.add(f"org/small-{number}", folder, downloads=number, likes=-number, pipeline_tag="text-generation")
    hub.add("org/other", folder, downloads=9, licence="mit", pipeline_tag="text-to-image")
    hub.add("org/small-secret", folder, private=True)
    api = HfApi(endpoint=hub.endpoint, token=False)
    assert [model.id for model in api.list_models(search="SMALL", sort="downloads", limit=2)] == [
        "org/small-4",
        "org/small-3",
    ]
    assert next(iter(api.list_models(sort="likes", pipeline_tag="text-generation"))).id == "org/small-0"
    (model,) = api.list_models(filter="license:mit", expand=["downloads", "gated", "safetensors"])
    assert (model.id, model.downloads, model.gated, model.likes) == ("org/other", 9, False, None)


def test_revisions_are_kept_and_branches_move(hub: ModelHub, folder: Path, tmp_path: Path) -> None:
    first = hub.add(NAME, folder)
    second = hub.add(NAME, make_gpt2(tmp_path / "next", seed=1))
    hub.add(NAME, folder, revision="refs/pr/1")
    api = HfApi(endpoint=hub.endpoint, token=False)
    assert first != second
    assert api.model_info(NAME).sha == second
    assert api.model_info(NAME, revision=first).sha == first
    assert api.model_info(NAME, revision="refs/pr/1").sha not in {None, second}
    hub.move(NAME, "main", first)
    assert api.model_info(NAME, revision="main").sha == first


def test_what_is_not_there_is_said_as_the_hub_says_it(hub: ModelHub, folder: Path, cache: Path) -> None:
    hub.add(NAME, folder)
    api = HfApi(endpoint=hub.endpoint, token=False)
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.model_info("org/none")
    assert refused.value.response.status_code == 401, "the hub doesn't tell whether it is private"
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="none")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(NAME, "none.txt", endpoint=hub.endpoint, cache_dir=cache, token=False)


def test_gated_files_need_a_token_that_was_let_in(hub: ModelHub, folder: Path, cache: Path) -> None:
    hub.add(NAME, folder, gated=True, tokens=frozenset({"hf_good"}))
    assert HfApi(endpoint=hub.endpoint, token=False).model_info(NAME).gated == "manual"
    for token, status in ((False, 401), ("hf_other", 403)):
        with pytest.raises(GatedRepoError) as refused:
            hf_hub_download(NAME, "config.json", endpoint=hub.endpoint, cache_dir=cache, token=token)
        assert refused.value.response.status_code == status
    assert (fetch(hub, cache, token="hf_good") / "config.json").is_file()


@pytest.mark.parametrize(
    ("asked", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-3", 206, b"789"),
        ("bytes=5-99", 206, b"56789"),
        ("bytes=10-", 416, b""),
        (None, 200, b"0123456789"),
    ],
)
def test_parts_of_files(hub: ModelHub, tmp_path: Path, asked: str | None, status: int, content: bytes) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "digits.txt").write_bytes(b"0123456789")
    hub.add(NAME, tmp_path / "one")
    url = f"{hub.endpoint}/{NAME}/resolve/main/digits.txt"
    answer = httpx2.get(url, headers={"range": asked} if asked else {})
    assert (answer.status_code, answer.content) == (status, content)


def test_a_connection_that_is_cut_is_taken_up_again(hub: ModelHub, folder: Path, cache: Path) -> None:
    save_tensors(folder / "model.safetensors", {"a": ("F32", [1_000_000])})
    hub.add(NAME, folder)
    hub.fault(path="*/model.safetensors", cut_after=1_500_000, times=1)
    snapshot = fetch(hub, cache)
    assert (snapshot / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert hub.asked[f"GET /{NAME}/resolve/{snapshot.name}/model.safetensors"] == 2


def test_content_may_be_another_one(hub: ModelHub, folder: Path, cache: Path) -> None:
    hub.add(NAME, folder)
    hub.fault(path="*/model.safetensors", wrong=True)
    got = (fetch(hub, cache) / "model.safetensors").read_bytes()
    meant = (folder / "model.safetensors").read_bytes()
    assert len(got) == len(meant)
    assert all(one != other for one, other in zip(got, meant, strict=True)), "no byte is what it should be"


def test_a_hub_may_fail_for_a_while(hub: ModelHub, folder: Path) -> None:
    hub.add(NAME, folder)
    hub.fault(path=f"/api/models/{NAME}", status=503, times=1)
    api = HfApi(endpoint=hub.endpoint, token=False)
    with pytest.raises(HfHubHTTPError) as failed:
        api.model_info(NAME)
    assert failed.value.response.status_code == 503
    assert api.model_info(NAME).sha


def test_listings_may_name_odd_paths(hub: ModelHub, folder: Path) -> None:
    hub.add(NAME, folder, odd_paths=["../evil", "/etc/evil"])
    api = HfApi(endpoint=hub.endpoint, token=False)
    paths = {entry.path for entry in api.list_repo_tree(NAME, recursive=True)}
    assert {"../evil", "/etc/evil"} <= paths
    assert {"../evil", "/etc/evil"} <= {file.rfilename for file in api.model_info(NAME).siblings or []}


async def test_an_answer_may_stall_until_it_is_mended(hub: ModelHub, folder: Path, eventually) -> None:  # type: ignore[no-untyped-def]
    hub.add(NAME, folder)
    fault = hub.fault(path="*/model.safetensors", stall_after=100)
    url = f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors"
    with httpx2.stream("GET", url) as answer:
        pieces = answer.iter_raw()
        got = next(pieces)
        await eventually(lambda: hub.stalled[f"{NAME}/model.safetensors"])
        assert hub.sent[f"{NAME}/model.safetensors"] == 100
        hub.mend(fault)
        got += b"".join(pieces)
    assert got == (folder / "model.safetensors").read_bytes()


async def test_a_client_that_leaves_is_noticed(hub: ModelHub, folder: Path, eventually) -> None:  # type: ignore[no-untyped-def]
    hub.add(NAME, folder)
    hub.fault(path="*/model.safetensors", stall_after=100)
    with httpx2.stream("GET", f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors"):
        await eventually(lambda: hub.stalled[f"{NAME}/model.safetensors"])
    await eventually(lambda: not hub.stalled[f"{NAME}/model.safetensors"])


def test_what_a_client_did_not_wait_for_is_not_sent(hub: ModelHub, folder: Path) -> None:
    size = save_tensors(folder / "model.safetensors", {"a": ("F32", [20_000_000])}).stat().st_size
    hub.add(NAME, folder)
    with httpx2.stream("GET", f"{hub.endpoint}/{NAME}/resolve/main/model.safetensors") as answer:
        next(answer.iter_raw())
    httpx2.get(f"{hub.endpoint}/{NAME}/resolve/main/config.json")
    assert hub.sent[f"{NAME}/model.safetensors"] < size / 2


def test_a_hub_may_be_away_and_come_back(hub: ModelHub, folder: Path) -> None:
    hub.add(NAME, folder)
    api = HfApi(endpoint=hub.endpoint, token=False)
    hub.stop()
    with pytest.raises(httpx2.TransportError):
        api.model_info(NAME)
    hub.start()
    assert api.model_info(NAME).sha


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
