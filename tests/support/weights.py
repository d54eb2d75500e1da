"""Folders of models without sense: configurations, and safetensors files of any shape; no torch."""

from __future__ import annotations

import random
from math import prod
from pathlib import Path
from typing import Any

import orjson

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I8": 1}
Tensors = dict[str, tuple[str, list[int]]]
"""Name -> precision and shape."""


def save_tensors(path: Path, tensors: Tensors, seed: int = 0) -> Path:
    """Write a safetensors file with arbitrary content."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    body = orjson.dumps(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(body).to_bytes(8, "little") + body + random.Random(seed).randbytes(end))
    return path


def save_json(path: Path, content: dict[str, Any] | list[Any]) -> Path:
    """Write a file of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(content))
    return path


def make_gpt2(folder: Path, numbers: int = 1000, seed: int = 0) -> Path:
    """Make the folder of a GPT-2 of one tensor, with what a repository has beside it."""
    save_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"], "n_positions": 128, "n_ctx": 128})
    save_json(folder / "tokenizer.json", {"model": {"vocab": {}}})
    save_json(folder / "tokenizer_config.json", {})
    save_tensors(folder / "model.safetensors", {"wte.weight": ("F32", [numbers])}, seed)
    (folder / "README.md").write_text("# A model\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    return folder
