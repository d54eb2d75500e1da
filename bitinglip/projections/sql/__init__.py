"""The projections' SQL: files of named blocks, each begun by a line `-- name: <block>`."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import resources

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "TASKS": ("events", "tasks"),
    "WORKERS": ("events", "workers"),
    "MODELS": ("events", "models"),
}
"""The projections of each stream, in the order in which they are applied."""

NAMES = ("events", "tasks", "workers", "models")
_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def blocks(name: str) -> dict[str, str]:
    """Return the blocks of one file by name."""
    parts = _BLOCK.split(_text(name))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@cache
def applied(stream: str) -> str:
    """Return the SQL that applies the staged batch to every projection of a stream."""
    return "\n".join(blocks(name)["apply"] for name in PROJECTIONS[stream])


@cache
def version(name: str) -> str:
    """Return the version of a projection: a digest of all that makes its rows."""
    return hashlib.sha256((_text("batch") + _text(name)).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return (resources.files(__name__) / f"{name}.sql").read_text("utf-8")
