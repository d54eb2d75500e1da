"""Model references and what is found on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidReference, ModelNotFound
from bitinglip.models.reference import Reference, parse_reference
from bitinglip.models.store import find_models

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,20}", fullmatch=True)


@given(names, names, st.none() | names)
def test_a_reference_comes_back(org: str, name: str, revision: str | None) -> None:
    reference = Reference(f"{org}/{name}", revision)
    assert parse_reference(str(reference)) == reference


@pytest.mark.parametrize("text", ["", "/", "a/b/c", "a/", "/b", "../x", "a/..", "a b", "a@", "a@../x", "-a", "a/b@x y"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference):
        parse_reference(text)


def make(folder: Path, architecture: str = "LlamaForCausalLM", **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config}))
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    return folder


def test_without_names_a_worker_serves_echo_and_all_in_its_directory(tmp_path: Path) -> None:
    make(tmp_path / "demo" / "story", max_position_embeddings=256)
    make(tmp_path / "plain", "BertModel")
    (tmp_path / "demo" / "empty").mkdir()
    found = {model.reference: model for model in find_models([], tmp_path, None)}
    assert {name: model.kind for name, model in found.items()} == {
        "echo": "echo",
        "demo/story": "text-generation",
        "plain": "embedding",
    }
    assert (found["demo/story"].context_tokens, found["demo/story"].size_bytes) == (256, 1000)


def test_a_folder_can_be_given_a_name(tmp_path: Path) -> None:
    folder = make(tmp_path / "somewhere", "GPT2LMHeadModel", n_positions=64)
    (model,) = find_models([f"my/gpt={folder}"], tmp_path / "none", None)
    assert (model.reference, model.path, model.context_tokens) == ("my/gpt", folder, 64)


def test_the_hubs_cache_is_read_by_branch_and_by_commit(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--name"
    commit = "a" * 40
    make(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    for name in ("org/name", f"org/name@{commit}"):
        (model,) = find_models([name], tmp_path / "none", tmp_path)
        assert (model.reference, model.revision) == (name, commit)


def test_a_local_revision_tells_contents_apart(tmp_path: Path) -> None:
    one, same, other = (make(tmp_path / name) for name in ("one", "same", "other"))
    (other / "model.safetensors").write_bytes(b"y" * 1000)
    first, second, third = find_models([f"a={one}", f"a={same}", f"a={other}"], tmp_path, None)
    assert first.revision == second.revision != third.revision


def test_what_is_not_there_or_not_ours_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="org/none"):
        find_models(["org/none"], tmp_path, tmp_path)
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        find_models([f"a={tmp_path}"], tmp_path, None)
    folder = make(tmp_path / "vision", "ViTForImageClassification")
    with pytest.raises(InvalidReference, match="ViTForImageClassification"):
        find_models([f"a={folder}"], tmp_path, None)


def test_a_folder_that_no_engine_takes_does_not_keep_a_worker_from_the_others(tmp_path: Path) -> None:
    make(tmp_path / "vision", "ViTForImageClassification")
    make(tmp_path / "story")
    assert [model.reference for model in find_models([], tmp_path, None)] == ["echo", "story"]


def test_a_model_is_served_with_the_models_that_it_needs(tmp_path: Path) -> None:
    speaker = make(tmp_path / "models" / "microsoft" / "speecht5_tts", "SpeechT5ForTextToSpeech")
    named = f"my/voice={speaker}"
    (alone,) = find_models([named], tmp_path / "models", tmp_path)
    assert (alone.kind, alone.parts) == ("text-to-speech", {})
    repo = tmp_path / "models--microsoft--speecht5_hifigan"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("b" * 40)
    cached = make(repo / "snapshots" / ("b" * 40), "SpeechT5HifiGan")
    assert find_models([named], tmp_path / "models", tmp_path)[0].parts == {"vocoder": cached}
    beside = make(speaker.parent / "speecht5_hifigan", "SpeechT5HifiGan")
    assert find_models([named], tmp_path / "models", tmp_path)[0].parts == {"vocoder": beside}
    for later in range(3):
        at = 4 * 10**18 + later  # in the year 2096
        os.utime((speaker, beside)[later % 2] / "model.safetensors", ns=(at, at))
        assert find_models([named], tmp_path / "models", tmp_path)[0].written_ns == at, "the newest, of either"
    assert [model.reference for model in find_models([], tmp_path / "models", tmp_path)] == [
        "echo",
        "microsoft/speecht5_tts",
    ]
