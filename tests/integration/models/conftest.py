"""A hub of the tests' own, and models to serve from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.modelhub import ModelHub


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    """A hub that serves nothing yet."""
    with ModelHub() as hub:
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache of the hub's layout."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder
