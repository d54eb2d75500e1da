"""From a reference to what a model is, and finding models: over real HTTP, with no weights travelling."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from bitinglip.errors import (
    BitingLipError,
    BrokenModel,
    HubOffline,
    HubTokenRefused,
    HubUnreachable,
    InvalidReference,
    ModelGated,
    ModelNotOnHub,
    NothingToLoad,
    OnlyPickles,
    RevisionNotOnHub,
    UnsafeRepository,
)
from bitinglip.events.model import ModelDescribed
from bitinglip.models import hub as hubs
from bitinglip.models.hubclient import hub_token
from bitinglip.models.memory import known
from tests.support.modelhub import ModelHub
from tests.support.weights import make_gpt2, save_json, save_tensors

NAME = "org/small"
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "max_position_embeddings": 2048,
    "torch_dtype": "bfloat16",
}


def describe(hub: ModelHub, reference: str = NAME, token: str | None = None, **more: Any) -> ModelDescribed:
    return hubs.describe(reference, endpoint=hub.endpoint, token=SecretStr(token) if token else None, **more)


def search(hub: ModelHub, text: str = "", **more: Any) -> list[str]:
    return [model.name for model in hubs.search(text, endpoint=hub.endpoint, token=None, **more)]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A Llama in three shards of some megabytes."""
    folder = tmp_path / "llama"
    save_json(folder / "config.json", LLAMA)
    save_json(folder / "tokenizer.json", {})
    for shard in (1, 2, 3):
        tensors = {f"model.layers.{shard}.up_proj.weight": ("BF16", [1000, 1000]), f"norm.{shard}": ("BF16", [1000])}
        save_tensors(folder / f"model-0000{shard}-of-00003.safetensors", tensors)
    save_json(folder / "model.safetensors.index.json", {"weight_map": {}})
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"x" * 1000)
    return folder


def test_a_model_is_described_without_its_weights(hub: ModelHub, llama: Path) -> None:
    commit = hub.add("meta/llama", llama, licence="llama3", tags=["chat"], pipeline_tag="text-generation")
    told = describe(hub, "meta/llama", by="anna")
    assert (told.reference, told.revision, told.asked_revision, told.by) == ("meta/llama", commit, "main", "anna")
    assert (told.kind, told.architecture, told.context_tokens) == ("text-generation", "LlamaForCausalLM", 2048)
    assert (told.parameters, told.dtype) == (3_003_000, "BF16")
    assert (told.licence, told.gated, told.parts, told.source) == ("llama3", False, {}, "hub")
    assert "chat" in told.tags
    assert [file.path for file in told.files if file.sha256] == [
        f"model-0000{shard}-of-00003.safetensors" for shard in (1, 2, 3)
    ]
    assert told.size_bytes == sum((llama / file.path).stat().st_size for file in told.files)
    assert told.need_bytes == known(llama).needs(), "the same as for the folder"
    assert set(told.need_bytes) == {"float32", "bfloat16", "float16", "int8", "int4"}
    assert hub.total_sent < 3 * 100_000 + 10_000, "heads alone"
    assert not [path for path in hub.sent if "original" in path or "tokenizer" in path]


def test_what_is_read_is_of_the_commit_that_is_told(hub: ModelHub, tmp_path: Path) -> None:
    commit = hub.add(NAME, make_gpt2(tmp_path / "small"))
    describe(hub, f"{NAME}@main")
    assert {request for request in hub.asked if "/resolve/" in request} == {
        f"GET /{NAME}/resolve/{commit}/{path}" for path in ("config.json", "model.safetensors")
    }, "even if the branch moves meanwhile"


def test_each_file_has_a_digest_of_its_content(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    for file in describe(hub).files:
        content = (tmp_path / "small" / file.path).read_bytes()
        assert file.size_bytes == len(content)
        if file.sha256:
            assert (file.sha256, file.git_sha1) == (hashlib.sha256(content).hexdigest(), None)
        else:
            assert file.git_sha1 == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: ModelHub, tmp_path: Path) -> None:
    first = hub.add(NAME, make_gpt2(tmp_path / "first", numbers=10))
    hub.move(NAME, "v1", first)
    second = hub.add(NAME, make_gpt2(tmp_path / "second", numbers=20))
    third = hub.add(NAME, make_gpt2(tmp_path / "third", numbers=30), revision="refs/pr/1")
    for reference, commit, numbers in (
        (NAME, second, 20),
        (f"{NAME}@main", second, 20),
        (f"{NAME}@v1", first, 10),
        (f"{NAME}@{first}", first, 10),
        (f"{NAME}@refs/pr/1", third, 30),
    ):
        told = describe(hub, reference)
        assert (told.reference, told.revision, told.parameters) == (NAME, commit, numbers)
    assert describe(hub, f"{NAME}@v1").asked_revision == "v1"


def test_a_pipeline_is_described_over_all_its_parts(hub: ModelHub, tmp_path: Path) -> None:
    folder = tmp_path / "painter"
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"], "vae": ["diffusers", "V"]}
    save_json(folder / "model_index.json", index | {"safety_checker": [None, None], "requires": [1, 2, 3]})
    for part, numbers in (("unet", 1000), ("vae", 100), ("vae_1_0", 7), ("safety_checker", 7)):
        save_json(folder / part / "config.json", {})
        save_tensors(folder / part / "diffusion_pytorch_model.safetensors", {"a": ("F16", [numbers])})
        save_tensors(folder / part / "diffusion_pytorch_model.fp16.safetensors", {"a": ("F16", [numbers])})
    save_tensors(folder / "all_in_one.safetensors", {"a": ("F16", [10_000])})
    hub.add(NAME, folder)
    told = describe(hub)
    assert (told.kind, told.architecture, told.context_tokens) == ("text-to-image", "StableDiffusionPipeline", None)
    assert (told.parameters, told.dtype) == (1100, "F16")
    assert [file.path for file in told.files] == [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_header_may_be_longer_than_what_is_read_at_once(hub: ModelHub, tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "small")
    save_tensors(folder / "model.safetensors", {f"a_rather_long_name.{n}": ("F32", [1]) for n in range(5000)})
    hub.add(NAME, folder)
    assert describe(hub).parameters == 5000
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert header > 300_000
    assert hub.sent[f"{NAME}/model.safetensors"] == header + 8


def test_a_hub_without_ranges_is_not_heard_to_the_end(hub: ModelHub, tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "small")
    tensors = {f"a_rather_long_name.{n}": ("F32", [1]) for n in range(5000)} | {"large": ("F32", [10_000_000])}
    size = save_tensors(folder / "model.safetensors", tensors).stat().st_size
    hub.add(NAME, folder)
    hub.fault(path="*.safetensors", whole=True)
    assert describe(hub).parameters == 10_005_000
    assert hub.sent[f"{NAME}/model.safetensors"] < size / 2


def test_what_a_model_needs_beside_it_is_told(hub: ModelHub, tmp_path: Path) -> None:
    folder = tmp_path / "speaker"
    save_json(folder / "config.json", {"architectures": ["SpeechT5ForTextToSpeech"]})
    save_tensors(folder / "model.safetensors", {"a": ("F32", [10])})
    hub.add(NAME, folder)
    told = describe(hub)
    assert (told.kind, told.parts) == ("text-to-speech", {"vocoder": "microsoft/speecht5_hifigan"})
    save_json(folder / "vocoder" / "config.json", {})
    hub.add(NAME, folder)
    assert describe(hub).parts == {}


def test_pickles_may_be_trusted(hub: ModelHub, tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "small")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x" * 4000)
    hub.add(NAME, folder)
    with pytest.raises(OnlyPickles, match=NAME):
        describe(hub)
    told = describe(hub, trust_pickles=True)
    assert (told.parameters, told.dtype) == (1000, None)
    assert "pytorch_model.bin" in [file.path for file in told.files]
    assert f"{NAME}/pytorch_model.bin" not in hub.sent


def test_a_model_that_no_engine_takes_is_described_all_the_same(hub: ModelHub, tmp_path: Path) -> None:
    folder = tmp_path / "vision"
    save_json(folder / "config.json", {"architectures": ["ViTForImageClassification"]})
    save_tensors(folder / "model.safetensors", {"a": ("F32", [10])})
    hub.add(NAME, folder)
    assert (describe(hub).kind, describe(hub).architecture) == (None, "ViTForImageClassification")


def test_what_is_not_on_the_hub(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.add("org/secret", tmp_path / "small", private=True, tokens=frozenset({"hf_mine"}))
    for reference in ("org/none", "org/none@v1", "org/secret"):
        with pytest.raises(ModelNotOnHub, match=reference.partition("@")[0]) as refused:
            describe(hub, reference)
        assert "HF_TOKEN" in refused.value.remedy
    with pytest.raises(RevisionNotOnHub, match="v9"):
        describe(hub, f"{NAME}@v9")
    with pytest.raises(InvalidReference):
        describe(hub, "../x")
    assert describe(hub, "org/secret", "hf_mine").parameters


def test_a_gated_model_needs_a_token_that_was_let_in(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"), gated=True, tokens=frozenset({"hf_good"}))
    for token, problem in ((None, "none is set"), ("hf_other", "has not been let in")):
        with pytest.raises(ModelGated, match=problem) as refused:
            describe(hub, NAME, token)
        assert {"HF_TOKEN", "terms"} <= set(refused.value.remedy.split())
        assert "hf_other" not in f"{refused.value} {refused.value.details()}"
    assert describe(hub, NAME, "hf_good").gated


def test_a_token_stays_with_the_hub(tmp_path: Path) -> None:
    with ModelHub(redirects=True) as hub:
        hub.add(NAME, make_gpt2(tmp_path / "small"), gated=True, tokens=frozenset({"hf_good"}))
        assert describe(hub, NAME, "hf_good").parameters == 1000
    told = {request: header for request, header in hub.authorized.items() if request.startswith("GET /cdn/")}
    assert told
    assert not any(told.values()), "where a file lies elsewhere, the token is not sent along"
    assert all(header for request, header in hub.authorized.items() if request not in told)


def test_a_token_that_the_hub_does_not_know(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.unknown_tokens.add("hf_old")
    with pytest.raises(HubTokenRefused) as refused:
        describe(hub, NAME, "hf_old")
    assert "hf_old" not in str(refused.value)
    with pytest.raises(HubTokenRefused):
        hubs.search(endpoint=hub.endpoint, token=SecretStr("hf_old"))


def test_a_hub_that_does_not_answer(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.fault(path="/api/models*", status=503, times=2)
    with pytest.raises(HubUnreachable, match="503"):
        describe(hub)
    with pytest.raises(HubUnreachable, match="503"):
        search(hub)
    hub.fault(path="*/model.safetensors", cut_after=10, times=1)
    with pytest.raises(HubUnreachable):
        describe(hub)
    assert describe(hub).revision
    hub.stop()
    with pytest.raises(HubUnreachable) as refused:
        describe(hub)
    assert hub.endpoint in str(refused.value)
    assert "on the nodes works as before" in refused.value.remedy
    hub.start()
    assert describe(hub).revision


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        (429, {"Retry-After": "7"}, HubUnreachable),
        (500, {"X-Error-Code": "RepoNotFound"}, HubUnreachable),
        (404, {}, ModelNotOnHub),
        (401, {}, ModelNotOnHub),
        (403, {"X-Error-Message": "the token may not read"}, ModelGated),
        (404, {"X-Error-Code": "EntryNotFound"}, BrokenModel),
        (400, {}, HubUnreachable),
    ],
)
def test_other_answers_are_told_apart(
    hub: ModelHub, tmp_path: Path, status: int, headers: dict[str, str], error: type[BitingLipError]
) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.fault(path=f"/api/models/{NAME}", status=status, headers=headers)
    with pytest.raises(error) as refused:
        describe(hub)
    if isinstance(refused.value, HubUnreachable):
        assert refused.value.retry_after_s == int(headers.get("Retry-After", 30))


def test_a_model_that_was_renamed_is_found(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.fault(path="/api/models/gpt-old", status=307, headers={"Location": f"/api/models/{NAME}?blobs=true"})
    hub.fault(path="gpt-old/*", status=307, headers={"Location": f"/{NAME}/resolve/main/config.json"}, times=1)
    hub.fault(path="gpt-old/*", status=307, headers={"Location": f"/{NAME}/resolve/main/model.safetensors"})
    assert describe(hub, "gpt-old").parameters == 1000


@pytest.mark.parametrize("endpoint", ["http://", "nonsense", "http://[::bad", "ftp://127.0.0.1"])
def test_an_address_that_is_none(endpoint: str) -> None:
    with pytest.raises(HubUnreachable):
        hubs.describe(NAME, endpoint=endpoint, token=None)


def test_the_hub_is_not_asked_when_it_must_not_be(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    with pytest.raises(HubOffline, match=r"models\.offline"):
        describe(hub, offline=True)
    with pytest.raises(HubOffline, match=r"models\.offline"):
        search(hub, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubOffline, match="HF_HUB_OFFLINE"):
        describe(hub)
    assert not hub.asked
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert describe(hub).revision


def test_the_environment_names_the_hub(hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.endpoint}/")
    assert hubs.describe(NAME, endpoint=None, token=None).revision


def test_the_token_is_the_environments_and_is_not_shown() -> None:
    token = hub_token({"HF_TOKEN": " hf_secret\n"})
    assert token is not None
    assert token.get_secret_value() == "hf_secret"
    assert "secret" not in f"{token} {token!r}"
    assert hub_token({"HF_TOKEN": " "}) is hub_token({}) is None


def test_a_repository_with_unsafe_names_is_refused(hub: ModelHub, tmp_path: Path) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"), odd_paths=["../../evil.json"])
    with pytest.raises(UnsafeRepository, match=r"evil\.json"):
        describe(hub)


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def listed_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def broken_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def short_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((1000).to_bytes(8, "little") + b"{}")


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def odd_weights(folder: Path) -> None:
    body = b'{"a": {"dtype": "F32", "shape": [-1]}}'
    (folder / "model.safetensors").write_bytes(len(body).to_bytes(8, "little") + body)


@pytest.mark.parametrize(
    "harm", [broken_config, listed_config, broken_weights, short_weights, odd_weights, empty_weights]
)
def test_files_that_cannot_be_read_are_named(hub: ModelHub, tmp_path: Path, harm: Any) -> None:
    folder = make_gpt2(tmp_path / "small")
    harm(folder)
    hub.add(NAME, folder)
    with pytest.raises(BrokenModel, match=r"config\.json|model\.safetensors"):
        describe(hub)


def test_a_repository_without_a_model(hub: ModelHub, tmp_path: Path) -> None:
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-Q4.gguf").write_bytes(b"GGUF")
    hub.add(NAME, tmp_path / "gguf")
    with pytest.raises(NothingToLoad, match="GGUF"):
        describe(hub)


@pytest.mark.parametrize(
    "answer", [b"<html>", b"[]", b"{}", b'{"sha": "../../x", "siblings": []}', b'{"sha": null, "siblings": null}']
)
def test_answers_that_are_none_are_refused(hub: ModelHub, tmp_path: Path, answer: bytes) -> None:
    hub.add(NAME, make_gpt2(tmp_path / "small"))
    hub.fault(path=f"/api/models/{NAME}", status=200, body=answer)
    with pytest.raises(HubUnreachable):
        describe(hub)


def test_models_are_found(hub: ModelHub, tmp_path: Path) -> None:
    small = make_gpt2(tmp_path / "small", numbers=1000)
    large = make_gpt2(tmp_path / "large", numbers=100_000)
    hub.add("a/gpt-small", small, pipeline_tag="text-generation", downloads=5, likes=1, licence="mit")
    hub.add("b/gpt-large", large, pipeline_tag="text-generation", downloads=9, likes=0, gated=True)
    hub.add("c/encoder", small, pipeline_tag="feature-extraction", downloads=7)
    hub.add("c/sentences", small, pipeline_tag="sentence-similarity", downloads=8)
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-Q4.gguf").write_bytes(b"GGUF")
    hub.add("d/gpt-gguf", tmp_path / "gguf", downloads=99, pipeline_tag="text-generation")
    assert search(hub, "gpt") == ["b/gpt-large", "a/gpt-small"]
    assert search(hub, "gpt", sort="likes") == ["a/gpt-small", "b/gpt-large"]
    assert search(hub, "GPT", limit=1) == ["b/gpt-large"]
    assert search(hub, kind="embedding") == ["c/sentences", "c/encoder"], "by what the hub calls them, together"
    assert search(hub, licence="mit") == ["a/gpt-small"]
    assert search(hub, "gpt", most_bytes=10_000) == ["a/gpt-small"]
    assert search(hub, kind="text-to-image") == []
    found = hubs.search("gpt-large", endpoint=hub.endpoint, token=None)[0]
    assert (found.kind, found.parameters, found.size_bytes) == ("text-generation", 100_000, 400_000)
    assert (found.gated, found.downloads, found.likes, found.licence) == (True, 9, 0, None)


def test_a_search_goes_on_until_enough_are_small(tmp_path: Path) -> None:
    make_gpt2(tmp_path / "large", numbers=1000)
    make_gpt2(tmp_path / "small", numbers=10)
    with ModelHub(page=3) as hub:
        for number in range(10):
            hub.add(f"org/large-{number}", tmp_path / "large", downloads=100)
        hub.add("org/small", tmp_path / "small", downloads=1)
        assert search(hub, most_bytes=100, limit=1) == ["org/small"]
        assert hub.asked["GET /api/models"] == 4


def test_a_model_may_be_described_from_a_copy_of_its_folder(hub: ModelHub, llama: Path, tmp_path: Path) -> None:
    hub.add(NAME, llama)
    told = describe(hub)
    for file in told.files:
        (tmp_path / "copy" / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(llama / file.path, tmp_path / "copy" / file.path)
    assert known(tmp_path / "copy").needs() == told.need_bytes, "what is fetched is all that counts"


def test_every_error_tells_what_to_do(hub: ModelHub) -> None:
    with pytest.raises(BitingLipError) as refused:
        describe(hub, "org/none")
    assert refused.value.details() == {"name": "org/none", "endpoint": hub.endpoint}
