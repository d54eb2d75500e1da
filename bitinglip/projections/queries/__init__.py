"""One file a question that the gateway asks."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def text(name: str) -> str:
    """Return the SQL of a question."""
    return (resources.files(__name__) / f"{name}.sql").read_text("utf-8")
