"""Of published repositories, the files that are loaded."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import NothingToLoad, OnlyPickles, UnsafeRepository
from bitinglip.events.model import ModelFile
from bitinglip.models.repofiles import variant_of, wanted, weights_of
from tests.unit import published_listings as published

NEVER = (".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".gguf", ".py", ".md", ".png", ".xml", ".tflite")
GPT2 = ["config.json", "model.safetensors", "tokenizer.json"]


def listing(text: str) -> list[ModelFile]:
    lines = [line.partition(" ") for line in text.strip().splitlines()]
    return [ModelFile(path=path, size_bytes=int(size)) for size, _, path in lines]


def of(*paths: str) -> list[ModelFile]:
    return [ModelFile(path=path, size_bytes=1) for path in paths]


def names(files: list[ModelFile]) -> str:
    return "\n".join(file.path for file in files)


def weights(files: list[ModelFile]) -> list[str]:
    return [file.path for file in files if PurePosixPath(file.path).suffix in {".safetensors", ".bin"}]


def test_gpt2() -> None:
    assert names(wanted(listing(published.GPT2))).split() == [
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]


def test_llama_without_its_original_weights() -> None:
    files = wanted(listing(published.LLAMA_8B))
    assert weights(files) == [f"model-0000{shard}-of-00004.safetensors" for shard in (1, 2, 3, 4)]
    others = [file.path for file in files if file.path not in weights(files)]
    assert others == [
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(file.size_bytes for file in files) == pytest.approx(16.07e9, rel=0.001), "half of what the folder has"


def test_shards_may_be_numbered_with_six_digits() -> None:
    files = wanted(listing(published.R1_QWEN_32B))
    assert len(weights(files)) == 8
    assert "model.safetensors.index.json" in names(files)


def test_sentence_transformers_modules_come_along() -> None:
    assert names(wanted(listing(published.MINILM))).split() == [
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]


def test_whisper_and_blip_with_their_processors() -> None:
    whisper = names(wanted(listing(published.WHISPER_TURBO))).split()
    assert {"model.safetensors", "normalizer.json", "preprocessor_config.json", "added_tokens.json"} <= set(whisper)
    blip = wanted(listing(published.BLIP))
    assert weights(blip) == ["model.safetensors"]
    assert "preprocessor_config.json" in names(blip)


@pytest.mark.parametrize("text", [published.DIALOGPT_SMALL, published.SPEECHT5])
def test_pickles_alone_are_refused_and_may_be_trusted(text: str) -> None:
    with pytest.raises(OnlyPickles, match=r"org/name .*pytorch_model\.bin") as refused:
        wanted(listing(text), reference="org/name")
    assert "worker.trust_pickles" in refused.value.remedy
    trusted = wanted(listing(text), trust_pickles=True)
    assert weights(trusted) == ["pytorch_model.bin"]
    assert "config.json" in names(trusted)


def test_a_speaker_has_what_its_tokenizer_is_made_of() -> None:
    assert "spm_char.model" in names(wanted(listing(published.SPEECHT5), trust_pickles=True))


def test_a_pipeline_is_its_parts_in_the_plain_precision() -> None:
    files = wanted(listing(published.SD_2_1))
    assert weights(files) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt"} <= {*names(files).split()}
    assert "feature_extractor/preprocessor_config.json" in names(files)


def test_a_pipelines_parts_are_those_of_its_index() -> None:
    parts = ["scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae"]
    files = wanted(listing(published.SDXL), parts=parts)
    assert weights(files) == [
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert {PurePosixPath(file.path).parent.as_posix() for file in files} == {".", *parts}
    assert "vae_1_0/diffusion_pytorch_model.safetensors" in weights(wanted(listing(published.SDXL)))


def test_a_part_in_pickles_is_refused() -> None:
    index = ["model_index.json", "vae/diffusion_pytorch_model.safetensors", "safety_checker/pytorch_model.bin"]
    with pytest.raises(OnlyPickles, match="safety_checker/pytorch_model"):
        wanted(of(*index))
    assert weights(wanted(of(*index), parts=["vae"])) == ["vae/diffusion_pytorch_model.safetensors"]


@pytest.mark.parametrize("text", [value for name, value in vars(published).items() if name.isupper()])
def test_nothing_that_runs_code_or_is_of_no_use_is_taken(text: str) -> None:
    for trust in (True, False) if "model.safetensors" in text else (True,):
        files = wanted(listing(text), trust_pickles=trust)
        assert not [file.path for file in files if file.path.endswith(NEVER) or file.path.startswith(".")]
        assert len({PurePosixPath(path).parent for path in weights(files)}) == len(
            {path.partition("-0")[0].partition(".")[0] for path in weights(files)}
        ), "one precision of each part"


@pytest.mark.parametrize(
    ("found", "taken"),
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.fp16.safetensors", "model.int8.safetensors"], ["model.fp16.safetensors"]),
        (["model.safetensors", "consolidated.safetensors", "adapter_model.safetensors"], ["model.safetensors"]),
        (["model-1-of-1.safetensors", "consolidated.safetensors"], ["model-1-of-1.safetensors"]),
        (
            ["model.safetensors", "model-1-of-1.safetensors", "model.safetensors.index.json"],
            ["model.safetensors"],
        ),
        (
            [
                "diffusion_pytorch_model.safetensors",
                "diffusion_pytorch_model-1-of-2.safetensors",
                "diffusion_pytorch_model-2-of-2.safetensors",
                "diffusion_pytorch_model.safetensors.index.json",
            ],
            ["diffusion_pytorch_model-1-of-2.safetensors", "diffusion_pytorch_model-2-of-2.safetensors"],
        ),
        (
            ["model.fp16-1-of-2.safetensors", "model.fp16-2-of-2.safetensors", "model.safetensors.index.fp16.json"],
            ["model.fp16-1-of-2.safetensors", "model.fp16-2-of-2.safetensors"],
        ),
        (["odd.safetensors", "model.fp16.safetensors"], ["model.fp16.safetensors"]),
        (["weights.safetensors", "models.safetensors", "x.bin"], []),
        ([], []),
    ],
)
def test_one_set_of_weights_is_taken(found: list[str], taken: list[str]) -> None:
    assert weights_of(found) == taken


def test_the_libraries_are_told_of_a_variant_if_some_weights_are_one() -> None:
    assert variant_of(["vae/model.safetensors", "unet/model.safetensors"]) is None
    assert variant_of(["vae/model.safetensors", "unet/model.fp16-1-of-2.safetensors"]) == "fp16"
    assert variant_of([]) is None


def test_the_index_of_a_variant_comes_with_it() -> None:
    files = ["config.json", "model.fp16-1-of-1.safetensors", "model.safetensors.index.fp16.json", "x.index.json"]
    assert set(names(wanted(of(*files))).split()) == set(files[:3])


def test_voices_templates_and_vocoders_come_along() -> None:
    beside = ["voices/anna.npy", "additional_chat_templates/tools.jinja", "chat_template.jinja"]
    beside += ["speaker_embeddings/v2/en_speaker_0.npy", "vocoder/config.json", "vocoder/model.safetensors"]
    files = wanted(of(*GPT2, *beside, "voices/anna.py", "other/a.json", "speaker_embeddings/v3/x.npy"))
    assert {file.path for file in files} == {*GPT2, *beside}


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        (["model-Q4_K_M.gguf", "README.md"], "GGUF"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["a.safetensors"], "neither a config.json nor"),
        (["config.json", "tokenizer.json"], "no weights"),
        (["config.json", "weights.safetensors"], "other names"),
        (["config.json", "onnx/model.onnx"], "no weights"),
        (["model_index.json", "scheduler/scheduler_config.json", "pipe.safetensors"], "other names"),
        ([], "neither"),
    ],
)
def test_what_no_engine_loads_is_said(paths: list[str], problem: str) -> None:
    with pytest.raises(NothingToLoad, match=problem):
        wanted(of(*paths))


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/passwd",
        "a/../../b",
        "a/./b",
        "a//b",
        "a/",
        "",
        "..",
        "a\\..\\b",
        "C:/x",
        "c:x",
        "a\nb",
        "a\x00",
        "a\ud800",
        "x" * 256,
        "/".join(["abcdefg"] * 150),
    ],
)
def test_a_listing_with_unsafe_names_is_refused(path: str) -> None:
    with pytest.raises(UnsafeRepository):
        wanted([*of(*GPT2), ModelFile(path=path, size_bytes=1)])


pieces = st.sampled_from(["..", ".", "", "a", "vae", "1_Pooling", "config.json", "x.safetensors", "~", "-x", "ü", "\\"])


@given(st.lists(st.lists(pieces, min_size=1, max_size=4).map("/".join), max_size=6))
def test_whatever_is_taken_lies_in_the_folder(paths: list[str]) -> None:
    try:
        files = wanted(of(*GPT2, *paths))
    except (UnsafeRepository, OnlyPickles):
        return
    root = PurePosixPath("/root")
    for file in files:
        assert root in (root / file.path).parents
        assert ".." not in PurePosixPath(file.path).parts
    assert {file.path for file in files} >= set(GPT2)
