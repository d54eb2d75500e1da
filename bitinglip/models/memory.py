"""How much memory a model takes, from the headers of its files alone: nothing is loaded, and no torch is needed."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U64": 8, "U32": 4, "U16": 2,
}  # fmt: skip
"""Bytes of one number, by safetensors' names."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What is converted when a model is loaded in another precision."""
MOST_HEADER_BYTES = 100 * 2**20
"""safetensors' own bound."""
ACTIVATIONS = 0.1
"""Share of the weights that a running model takes besides them, as a rule of thumb; measured after the load."""
LEAST_ACTIVATIONS = 64 * 2**20
SHARE = 0.9
"""Part of a device's memory that models may take, if nothing else is set."""
LINEAR_BYTES = {"int8": 1.05, "int4": 0.56}
"""Bytes of one number of a quantised linear layer, the scales included."""
CONTEXT = 4096
"""Tokens of context that a text model is given room for, if nothing else is asked for."""
PIPELINE = "model_index.json"
"""What a folder of diffusers' has, whose weights are in the folders of its parts."""
NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "shared", "norm")
"""Parts of the names of weights that are no linear layers, or stay as they are when a model is quantised."""


@dataclass(frozen=True, slots=True)
class Need:
    """Memory that a model needs, in bytes."""

    weights: int
    cache: int
    """Keys and values of one context."""

    @property
    def total(self) -> int:
        """All of it, with what a run takes besides."""
        return self.weights + self.cache + max(LEAST_ACTIVATIONS, round(self.weights * ACTIVATIONS))


class _Tensor(NamedTuple):
    name: str
    dtype: str
    shape: list[int]


def estimate(
    folder: Path, item_bytes: int | None = None, context: int = CONTEXT, linear_bytes: float | None = None
) -> Need:
    """Return what the model in a folder needs.

    Args:
        folder: The model's folder, transformers' or diffusers'.
        item_bytes: Bytes of one number after the load; none: as the files have it.
        context: Tokens that the cache of a text model is to hold.
        linear_bytes: Bytes of one number of a linear layer, if these are quantised.

    Raises:
        ValueError: a file is not safetensors.
    """
    weights = sum(
        _bytes(tensor, item_bytes, linear_bytes) for file in weight_files(folder) for tensor in _tensors(file)
    )
    return Need(round(weights), _cache_bytes(folder, item_bytes or 2, context))


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that are loaded: of several variants of a part, the one without a variant's name."""
    files = sorted(folder.rglob("*.safetensors"))
    found: list[Path] = []
    for parent in dict.fromkeys(file.parent for file in files):
        here = [file for file in files if file.parent == parent]
        index = next((file for file in sorted(parent.glob("*.safetensors.index.json")) if _is_plain(file)), None)
        if index is not None:
            named = {parent / name for name in set(orjson.loads(index.read_bytes())["weight_map"].values())}
            found += sorted(named & set(here))
            continue
        plain = [file for file in here if _is_plain(file)] or here
        if not (parent == folder and (folder / PIPELINE).is_file()):  # beside its parts lies a pipeline in one file
            found += plain
    return found


def _is_plain(file: Path) -> bool:
    """Tell whether the name has no variant in it, as `model.fp16.safetensors` has."""
    return "." not in file.name.partition(".safetensors")[0]


def _bytes(tensor: _Tensor, item_bytes: int | None, linear_bytes: float | None) -> float:
    count = math.prod(tensor.shape)
    if tensor.dtype not in FLOATS:
        return count * BYTES.get(tensor.dtype, 1)
    if linear_bytes is not None and len(tensor.shape) == 2 and not any(part in tensor.name for part in NOT_LINEAR):
        return count * linear_bytes
    return count * (item_bytes or BYTES[tensor.dtype])


def _tensors(file: Path) -> Iterator[_Tensor]:
    """Yield what a file's header tells of each tensor."""
    with file.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else MOST_HEADER_BYTES + 1
        if size > MOST_HEADER_BYTES:
            raise ValueError(f"{file.name}: this is no safetensors file")
        header = cast("dict[str, Any]", orjson.loads(stream.read(size)))
    for name, tensor in header.items():
        if name != "__metadata__":
            yield _Tensor(name, tensor["dtype"], tensor["shape"])


def _cache_bytes(folder: Path, item_bytes: int, context: int) -> int:
    """Return the size of keys and values: two numbers a layer, head and dimension for each token."""
    try:
        config = cast("dict[str, Any]", orjson.loads((folder / "config.json").read_bytes()))
    except (OSError, orjson.JSONDecodeError):
        return 0
    architecture = str((config.get("architectures") or [""])[0])
    config = cast("dict[str, Any]", config.get("text_config") or config)
    layers, heads = _first(config, "num_hidden_layers", "n_layer"), _first(config, "num_attention_heads", "n_head")
    width = _first(config, "hidden_size", "n_embd")
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "Generation")) or not (layers and heads and width):
        return 0
    size = _first(config, "head_dim") or width // heads
    shared = _first(config, "num_key_value_heads") or heads
    longest = _first(config, "max_position_embeddings", "n_positions", "n_ctx") or context
    return 2 * layers * shared * size * item_bytes * min(context, longest)


def _first(config: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := config.get(name), int)), 0)
