"""How much memory a model takes, from its configuration and the headers of its files: nothing is loaded.

The same rules hold for a folder on this machine and for a repository of which only the headers are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import orjson

from bitinglip.models.headers import BYTES, Tensor, read_header
from bitinglip.models.kinds import Config, architecture_of, kind_of, language_of, part_names
from bitinglip.models.repofiles import CONFIG, PICKLE, PIPELINE, loaded_weights, variant_of

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""What is converted when a model is loaded in another precision."""
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by the name of the precision of a load."""
LINEAR_BYTES = {"int8": 1.05, "int4": 0.56}
"""Bytes of one number of a quantised linear layer, the scales included."""
ACTIVATIONS = 0.1
"""Share of the weights that a running model takes besides them, as a rule of thumb; measured after the load."""
LEAST_ACTIVATIONS = 64 * 2**20
CONTEXT = 4096
"""Tokens of context that a text model is given room for, if nothing else is asked for."""

_NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "shared", "norm")
"""Parts of the names of weights that are no linear layers, or stay as they are when a model is quantised."""
_DENOISERS = frozenset({"unet", "transformer"})
"""The part of a pipeline that is quantised."""
_UNQUANTISED = ("GPT2", "OpenAIGPT", "VitsModel", "BarkModel")
"""Architectures whose layers torchao leaves as they are (they are no `Linear`), or cannot load."""
_MASKED = "BarkModel"
"""What keeps the causal masks of its checkpoint; older ones of others have them as well, and they are not loaded."""
_HEADS = ("cls.", "lm_head.", "predictions.")
"""What a checkpoint has beside an encoder, and is not loaded when that makes vectors."""


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


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model before it is loaded."""

    config: Config
    """Its `config.json`, or a pipeline's `model_index.json`."""
    names: frozenset[str] = frozenset()
    """What lies in its folder, files and folders."""
    tensors: Mapping[str, Sequence[Tensor]] = field(default_factory=dict[str, Sequence[Tensor]])
    """Of its weights, by the folder that they are in; the model's own is the empty one."""
    pickle_bytes: int = 0
    """Size of weights in pickles, whose headers are not read."""

    @property
    def loaded(self) -> list[tuple[str, Tensor]]:
        """The tensors that a load keeps, with their folders."""
        return [(folder, tensor) for folder, each in self.tensors.items() for tensor in each if self._keeps(tensor)]

    @property
    def parameters(self) -> int | None:
        """Numbers in its weights."""
        if self.pickle_bytes:
            return round(self.pickle_bytes / self._pickle_item_bytes)
        return sum(tensor.numbers for _, tensor in self.loaded) or None

    @property
    def dtype(self) -> str | None:
        """Precision of most of its weights, by safetensors' name."""
        counts: Counter[str] = Counter()
        for _, tensor in self.loaded:
            counts[tensor.dtype] += tensor.numbers
        return counts.most_common(1)[0][0] if counts else None

    def need(self, item_bytes: int | None = None, context: int = CONTEXT, linear_bytes: float | None = None) -> Need:
        """Return what it needs; the arguments are those of `estimate`."""
        weights = sum(self._bytes(folder, tensor, item_bytes, linear_bytes) for folder, tensor in self.loaded)
        weights += self.pickle_bytes * (item_bytes / self._pickle_item_bytes if item_bytes else 1)
        weights += _positions(self.config) * (item_bytes or 4)
        return Need(round(weights), _cache_bytes(self.config, item_bytes or 2, context))

    def needs(self) -> dict[str, int]:
        """Return what it needs in all, by the precision that it can be loaded in.

        Quantised, what is no linear layer is as the files have it.
        """
        needs = {name: self.need(item_bytes) for name, item_bytes in ITEM_BYTES.items()}
        smaller = {name: self.need(linear_bytes=linear_bytes) for name, linear_bytes in LINEAR_BYTES.items()}
        own = self.need()
        needs |= {name: need for name, need in smaller.items() if need.weights < own.weights}
        return {name: need.total for name, need in needs.items()}

    @property
    def _pickle_item_bytes(self) -> int:
        own = self.config.get("dtype") or self.config.get("torch_dtype")
        return ITEM_BYTES.get(str(own), 4)

    def _keeps(self, tensor: Tensor) -> bool:
        if tensor.name.endswith(".bias") and len(tensor.shape) == 4:
            return architecture_of(self.config) == _MASKED  # for others it is computed anew, and not kept
        if tensor.name == "lm_head.weight" and self.config.get("tie_word_embeddings") is True:
            return False  # it is the embeddings'
        return not (tensor.name.startswith(_HEADS) and kind_of(self.config, self.names) == "embedding")

    def _bytes(self, folder: str, tensor: Tensor, item_bytes: int | None, linear_bytes: float | None) -> float:
        if tensor.dtype not in FLOATS:
            return tensor.numbers * BYTES.get(tensor.dtype, 1)
        if linear_bytes is not None and self._is_quantised(folder, tensor):
            return tensor.numbers * linear_bytes
        return tensor.numbers * (item_bytes or BYTES[tensor.dtype])

    def _is_quantised(self, folder: str, tensor: Tensor) -> bool:
        """Tell whether a tensor is a linear layer's, of those that a load in a smaller precision quantises."""
        if (architecture_of(self.config) or "").startswith(_UNQUANTISED) or (folder and folder not in _DENOISERS):
            return False
        return len(tensor.shape) == 2 and not any(part in tensor.name for part in _NOT_LINEAR)


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
    return known(folder).need(item_bytes, context, linear_bytes)


def known(folder: Path) -> Known:
    """Read what a folder tells of its model.

    Raises:
        ValueError: a file is not safetensors.
    """
    tensors: dict[str, list[Tensor]] = {}
    pickle_bytes = 0
    for file in weight_files(folder):
        if file.name.endswith(PICKLE):
            pickle_bytes += file.stat().st_size
            continue
        part = file.relative_to(folder).parent.as_posix()
        tensors.setdefault("" if part == "." else part, []).extend(read_header(file))
    names = frozenset(entry.name for entry in folder.iterdir())
    return Known(_config(folder), names, tensors, pickle_bytes)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of weights that are loaded: of several variants of a part, the one without a variant's name."""
    index = _read(folder / PIPELINE)
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    weights = loaded_weights(paths, part_names(index) or None if index is not None else None)
    return [folder / path for part in sorted(weights) for path in weights[part]]


def variant(folder: Path) -> str | None:
    """Return the precision that the libraries must be told to find a folder's weights; mostly none."""
    return variant_of(file.name for file in weight_files(folder))


def _config(folder: Path) -> Config:
    index = _read(folder / PIPELINE)
    return index if index is not None else _read(folder / CONFIG) or {}


def _read(file: Path) -> Config | None:
    try:
        return cast("Config", orjson.loads(file.read_bytes()))
    except (OSError, orjson.JSONDecodeError):
        return None


def _positions(config: Config) -> int:
    """Count the numbers of a SpeechT5's places of letters and of sounds, which no file has: they are computed."""
    if config.get("model_type") != "speecht5":
        return 0
    return _first(config, "hidden_size") * sum(_each(config, "max_text_positions", "max_speech_positions"))


def _cache_bytes(config: Config, item_bytes: int, context: int) -> int:
    """Return the size of keys and values: two numbers a layer, head and dimension for each token."""
    architecture, config = architecture_of(config) or "", language_of(config)
    layers, heads = _first(config, "num_hidden_layers", "n_layer"), _first(config, "num_attention_heads", "n_head")
    width = _first(config, "hidden_size", "n_embd")
    if not architecture.endswith(("ForCausalLM", "LMHeadModel", "Generation")) or not (layers and heads and width):
        return 0
    size = _first(config, "head_dim") or width // heads
    shared = _first(config, "num_key_value_heads") or heads
    longest = _first(config, "max_position_embeddings", "n_positions", "n_ctx") or context
    return 2 * layers * shared * size * item_bytes * min(context, longest)


def _first(config: Config, *names: str) -> int:
    return next(_each(config, *names), 0)


def _each(config: Config, *names: str) -> Iterator[int]:
    return (value for name in names if isinstance(value := config.get(name), int))
