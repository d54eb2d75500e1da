"""What could run code when it is loaded: refused, unless the model is named for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from bitinglip.workers.engine import Loaded, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_models import STORY
from tests.engines.support import run

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGIN = "Once upon a time"
CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own-llama"

class OwnLlama(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture(scope="module")
def pickled(story: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The story model with its weights in a pickle."""
    folder = shutil.copytree(story.path or "", tmp_path_factory.mktemp("pickled") / "story")
    code = (
        "import sys, torch, safetensors.torch as s; from pathlib import Path; f = Path(sys.argv[1]);"
        "w = f / 'model.safetensors'; torch.save(s.load_file(w), f / 'pytorch_model.bin'); w.unlink()"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=True)
    return story.model_copy(update={"reference": "pickled", "path": str(folder)})


@pytest.fixture(scope="module")
def own_code(story: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The story model with a class of its own."""
    folder = shutil.copytree(story.path or "", tmp_path_factory.mktemp("code") / "story")
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-llama",
        "architectures": ["OwnLlama"],
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnLlama"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return story.model_copy(update={"reference": "own-code", "path": str(folder)})


async def test_pickles_are_loaded_only_if_the_model_is_trusted(shared_host: EngineHost, pickled: ModelSpec) -> None:
    refused = await shared_host.load(pickled)
    assert isinstance(refused, LoadFailed)
    assert not refused.failure.retryable
    assert "worker.trust_pickles" in refused.failure.message
    trusted = pickled.model_copy(update={"trust_pickles": True})
    assert isinstance(await shared_host.load(trusted), Loaded)
    (said,) = await run(shared_host, trusted, {"prompt": BEGIN})
    assert said.result["text"] == STORY[BEGIN]


async def test_code_is_run_only_if_the_model_is_trusted(shared_host: EngineHost, own_code: ModelSpec) -> None:
    refused = await shared_host.load(own_code)
    assert isinstance(refused, LoadFailed)
    assert not refused.failure.retryable
    assert "worker.trust_code" in refused.failure.message
    trusted = own_code.model_copy(update={"trust_code": True})
    (said,) = await run(shared_host, trusted, {"prompt": BEGIN})
    assert said.result["text"] == STORY[BEGIN]
