"""Real models, made once a session, and a real engine process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from bitinglip.settings import Worker
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.enginehost import EngineHost
from tests.support.models import model_folder


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The language model that knows a few sentences by heart."""
    return _spec("text-generation", "story", model_folder(tmp_path_factory, "story"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """An untrained GPT-2 without a chat template."""
    return _spec("text-generation", "gpt2", model_folder(tmp_path_factory, "gpt2"))


@pytest.fixture(scope="session")
def minilm() -> ModelSpec:
    """MiniLM with its real weights."""
    from scripts.tiny_models import minilm_path

    return _spec("embedding", "minilm", minilm_path())


@pytest.fixture
async def host() -> AsyncIterator[EngineHost]:
    """An engine process of the test's own."""
    host = EngineHost(Worker(threads=1), "cpu")
    await host.start()
    yield host
    await host.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_host() -> AsyncIterator[EngineHost]:
    """An engine process for the tests of one file: importing torch takes seconds."""
    host = EngineHost(Worker(threads=1, max_loaded=3), "cpu")
    await host.start()
    yield host
    await host.stop()


def _spec(kind: str, reference: str, path: Path) -> ModelSpec:
    return ModelSpec(kind=kind, reference=reference, path=str(path))
