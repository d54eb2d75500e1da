"""What the head of a safetensors file tells: names, precisions and shapes of its tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, cast

import orjson

LENGTH_BYTES = 8
"""Where a header begins: before it is its length."""
MOST_HEADER_BYTES = 100 * 2**20
"""safetensors' own bound."""
BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U64": 8, "U32": 4, "U16": 2,
}  # fmt: skip
"""Bytes of one number, by safetensors' names."""


class Tensor(NamedTuple):
    """One tensor of a file."""

    name: str
    dtype: str
    """By safetensors' name, as `BF16`."""
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def header_bytes(head: bytes) -> int:
    """Return the length of a header, from the first bytes of its file.

    Raises:
        ValueError: the file is no safetensors.
    """
    size = int.from_bytes(head[:LENGTH_BYTES], "little")
    if len(head) < LENGTH_BYTES or not 0 < size <= MOST_HEADER_BYTES:
        raise ValueError("this is no safetensors file")
    return size


def parse_header(body: bytes) -> list[Tensor]:
    """Read a header.

    Raises:
        ValueError: it is none.
    """
    try:
        entries = cast("dict[str, dict[str, Any]]", orjson.loads(body))
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        return [Tensor(name, str(entry["dtype"]), _shape(entry["shape"])) for name, entry in tensors.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header cannot be read ({type(error).__name__})") from error


def read_header(file: Path) -> list[Tensor]:
    """Read the header of a file.

    Raises:
        ValueError: the file is no safetensors.
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        try:
            return parse_header(stream.read(header_bytes(stream.read(LENGTH_BYTES))))
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error


def _shape(sizes: list[Any]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in sizes)
    if any(size < 0 for size in shape):
        raise ValueError("a tensor has a negative size")
    return shape
