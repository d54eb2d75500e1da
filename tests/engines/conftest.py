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
def painter(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """An untrained Stable Diffusion."""
    return _spec("text-to-image", "painter", model_folder(tmp_path_factory, "painter"))


@pytest.fixture(scope="session")
def seer(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A BLIP that knows a caption for each of four colours."""
    return _spec("image-to-text", "seer", model_folder(tmp_path_factory, "seer"))


@pytest.fixture(scope="session")
def listener(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A Whisper that knows a transcript for each of three tones."""
    return _spec("speech-to-text", "listener", model_folder(tmp_path_factory, "listener"))


@pytest.fixture(scope="session")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A SpeechT5 that knows how long two words are."""
    return _spec("text-to-speech", "speaker", model_folder(tmp_path_factory, "speaker"))


@pytest.fixture(scope="session")
def vits(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """An untrained VITS of three speakers."""
    return _spec("text-to-speech", "vits", model_folder(tmp_path_factory, "vits"))


@pytest.fixture(scope="session")
def bark(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """An untrained Bark."""
    return _spec("text-to-speech", "bark", model_folder(tmp_path_factory, "bark"))


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
async def shared_host(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineHost]:
    """An engine process for the tests of one file: importing torch takes seconds."""
    host = EngineHost(Worker(threads=1, max_loaded=3), "cpu", scratch=tmp_path_factory.mktemp("scratch"))
    await host.start()
    yield host
    await host.stop()


def _spec(kind: str, reference: str, path: Path) -> ModelSpec:
    return ModelSpec(kind=kind, reference=reference, path=str(path))
