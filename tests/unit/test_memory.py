"""What a model needs, by its files' headers alone."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.models.memory import LEAST_ACTIVATIONS, estimate, known, weight_files

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 131_072,
}


def save(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """Write a safetensors file's header; nobody reads what follows it."""
    header = {
        name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]} for name, (dtype, shape) in tensors.items()
    }
    body = orjson.dumps(header | {"__metadata__": {"format": "pt"}})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(body)) + body)


def configure(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_bytes(orjson.dumps(config))


def test_weights_are_counted_in_the_precision_of_the_load(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": ("BF16", [100, 10]), "b": ("I64", [3])})
    assert estimate(tmp_path).weights == 2024
    assert estimate(tmp_path, item_bytes=4).weights == 4024


def test_quantised_linear_layers_are_smaller_and_embeddings_are_not(tmp_path: Path) -> None:
    save(
        tmp_path / "model.safetensors",
        {"model.embed_tokens.weight": ("F32", [100, 10]), "up_proj.weight": ("F32", [10, 10]), "bias": ("F32", [10])},
    )
    assert estimate(tmp_path, item_bytes=4, linear_bytes=1).weights == 4000 + 100 + 40


def test_shards_are_counted_by_their_index_and_nothing_twice(tmp_path: Path) -> None:
    for name in ("model-1-of-2", "model-2-of-2", "consolidated"):
        save(tmp_path / f"{name}.safetensors", {name: ("F16", [50])})
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_bytes(orjson.dumps(index))
    assert estimate(tmp_path).weights == 200


def test_of_several_variants_the_plain_one_counts(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    save(tmp_path / "unet" / "diffusion_pytorch_model.safetensors", {"a": ("F32", [10])})
    save(tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors", {"a": ("F16", [10])})
    save(tmp_path / "vae" / "model.fp16.safetensors", {"a": ("F16", [10])})
    names = [path.relative_to(tmp_path).as_posix() for path in weight_files(tmp_path)]
    assert names == ["unet/diffusion_pytorch_model.safetensors", "vae/model.fp16.safetensors"]
    assert estimate(tmp_path).weights == 60


def test_a_pipeline_in_one_file_beside_its_parts_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    save(tmp_path / "sd_xl_base.safetensors", {"a": ("F32", [1000])})
    save(tmp_path / "unet" / "model.safetensors", {"a": ("F32", [10])})
    assert estimate(tmp_path).weights == 40


def test_what_old_checkpoints_have_and_no_load_keeps_is_not_counted(tmp_path: Path) -> None:
    layer = {"h.0.attn.bias": ("F32", [1, 1, 100, 100]), "h.0.attn.masked_bias": ("F32", []), "ln.bias": ("F32", [10])}
    save(tmp_path / "model.safetensors", layer)
    assert estimate(tmp_path).weights == 44
    configure(tmp_path, {"architectures": ["BarkModel"]})
    assert estimate(tmp_path).weights == 40_044, "it keeps them"


def test_a_head_that_is_the_embeddings_is_not_counted_twice(tmp_path: Path) -> None:
    both = {"model.embed_tokens.weight": ("F32", [100, 10]), "lm_head.weight": ("F32", [100, 10])}
    save(tmp_path / "model.safetensors", both)
    configure(tmp_path, LLAMA)
    assert estimate(tmp_path).weights == 8000
    configure(tmp_path, LLAMA | {"tie_word_embeddings": True})
    assert estimate(tmp_path).weights == 4000


def test_an_encoders_heads_are_not_loaded(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"bert.a": ("F32", [10]), "cls.predictions.b": ("F32", [10])})
    configure(tmp_path, {"architectures": ["BertForMaskedLM"]})
    assert estimate(tmp_path).weights == 40
    configure(tmp_path, {"architectures": ["BertForSequenceClassification"]})
    assert estimate(tmp_path).weights == 80


def test_of_a_pipeline_the_denoiser_alone_is_quantised(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "XPipeline", "unet": ["a", "b"], "encoder": ["a", "b"], "safety_checker": [null, null]}'
    )
    for part in ("unet", "encoder", "safety_checker", "vae_1_0"):
        save(tmp_path / part / "model.safetensors", {"up.weight": ("F32", [10, 10])})
    assert estimate(tmp_path).weights == 800, "of what the index names"
    assert estimate(tmp_path, linear_bytes=1).weights == 500


def test_layers_that_are_no_linear_ones_stay_as_they_are(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"h.0.mlp.c_fc.weight": ("F32", [10, 10])})
    configure(tmp_path, {"architectures": ["GPT2LMHeadModel"]})
    assert estimate(tmp_path, linear_bytes=1).weights == 400
    assert set(known(tmp_path).needs()) == {"float32", "bfloat16", "float16"}


def test_a_speech_models_places_are_computed(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": ("F32", [10])})
    save(tmp_path / "vocoder" / "model.safetensors", {"a": ("F32", [10])})
    config = {"model_type": "speecht5", "hidden_size": 8, "max_text_positions": 10, "max_speech_positions": 20}
    configure(tmp_path, config)
    configure(tmp_path / "vocoder", {})
    assert estimate(tmp_path, item_bytes=2).weights == 2 * (10 + 10 + 8 * 30)


def test_pickles_are_counted_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 4000)
    configure(tmp_path, {"architectures": ["GPT2LMHeadModel"], "torch_dtype": "float16"})
    assert (estimate(tmp_path).weights, estimate(tmp_path, item_bytes=4).weights) == (4000, 8000)
    assert known(tmp_path).parameters == 2000
    save(tmp_path / "model.safetensors", {"a": ("F32", [10])})
    assert estimate(tmp_path).weights == 40


def test_what_is_known_beforehand(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"x_proj": ("BF16", [100, 10]), "norm": ("F32", [3]), "m": ("I64", [2])})
    configure(tmp_path, LLAMA)
    facts = known(tmp_path)
    assert (facts.parameters, facts.dtype) == (1005, "BF16")
    needs = facts.needs()
    assert set(needs) == {"float32", "bfloat16", "float16", "int8", "int4"}
    assert needs["float32"] > needs["bfloat16"] == needs["float16"] > needs["int8"] > needs["int4"]


def test_the_cache_of_a_published_model_is_as_large_as_known(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": ("BF16", [1])})
    configure(tmp_path, LLAMA)
    assert estimate(tmp_path, context=8192).cache == 2**30, "128 KiB a token (Llama 3.1 8B)"


def test_the_cache_is_no_longer_than_the_models_context(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": ("BF16", [1])})
    configure(tmp_path, LLAMA | {"max_position_embeddings": 1024})
    assert estimate(tmp_path, context=8192).cache == 2**27
    configure(tmp_path, LLAMA | {"architectures": ["BertModel"]})
    assert estimate(tmp_path).cache == 0


def test_a_run_takes_something_besides(tmp_path: Path) -> None:
    save(tmp_path / "model.safetensors", {"a": ("F32", [10])})
    assert estimate(tmp_path).total == 40 + LEAST_ACTIVATIONS


@pytest.mark.parametrize("body", [b"", b"\x00", b"\xff" * 64])
def test_what_is_no_safetensors_file_is_said(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(body)
    with pytest.raises(ValueError, match="no safetensors file"):
        estimate(tmp_path)


@given(st.lists(st.integers(0, 64), min_size=1, max_size=4), st.sampled_from([1, 2, 4]))
def test_a_smaller_precision_never_takes_more(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], by: int
) -> None:
    folder = tmp_path_factory.mktemp("model")
    save(folder / "model.safetensors", {"a.weight": ("F32", shape)})
    assert estimate(folder, by).total <= estimate(folder).total
    assert estimate(folder, 4, linear_bytes=0.5).total <= estimate(folder, 4).total
