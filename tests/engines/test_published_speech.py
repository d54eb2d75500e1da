"""speecht5_tts as it is published: its files, without voices of its own, and its vocoder as a model beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bitinglip.workers.engine import FILE, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_speech import SPOKEN
from tests.engines.support import run

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP_S = 0.032
"""Two frames of 256 samples at 16 kHz."""
VOICE = [float(value) for value in np.linspace(0.9, 0.1, 16)]
PICKLE = """
import sys, torch, safetensors.torch as s
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    torch.save(s.load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
"""


@pytest.fixture(scope="module")
def speecht5(speaker: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """speecht5_tts and speecht5_hifigan, in small, with the files that were published."""
    folder = tmp_path_factory.mktemp("models") / "speecht5_tts"
    shutil.copytree(speaker.path or "", folder, ignore=shutil.ignore_patterns("voices", "vocoder"))
    hifigan = shutil.copytree(Path(speaker.path or "") / "vocoder", folder.with_name("speecht5_hifigan"))
    ends = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    files = {
        "added_tokens.json": {"<mask>": 200, "<ctc_blank>": 201},
        "special_tokens_map.json": {**ends, "mask_token": "<mask>"},
        "preprocessor_config.json": {"feature_extractor_type": "SpeechT5FeatureExtractor", "sampling_rate": 16_000},
        "tokenizer_config.json": {
            **ends,
            "model_max_length": 120,
            "normalize": False,
            "processor_class": "SpeechT5Processor",
            "sp_model_kwargs": {},
            "tokenizer_class": "SpeechT5Tokenizer",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return ModelSpec(
        kind="text-to-speech", reference="microsoft/speecht5_tts", path=str(folder), parts={"vocoder": str(hifigan)}
    )


@pytest.fixture(scope="module")
def pickled(speecht5: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Both with their weights in pickles."""
    made = tmp_path_factory.mktemp("pickled")
    folders = speecht5.path or "", speecht5.parts["vocoder"]
    copies = [shutil.copytree(folder, made / Path(folder).name) for folder in folders]
    subprocess.run([sys.executable, "-c", PICKLE, *copies], check=True)
    where = {"reference": "pickled", "path": str(copies[0]), "parts": {"vocoder": str(copies[1])}}
    return speecht5.model_copy(update=where)


async def test_speecht5_speaks_in_the_voice_that_is_given(shared_host: EngineHost, speecht5: ModelSpec) -> None:
    await _speaks(shared_host, speecht5)


async def test_speecht5_as_pickles_is_loaded_only_if_it_is_trusted(shared_host: EngineHost, pickled: ModelSpec) -> None:
    refused = await shared_host.load(pickled)
    assert isinstance(refused, LoadFailed)
    assert "worker.trust_pickles" in refused.failure.message
    await _speaks(shared_host, pickled.model_copy(update={"reference": "trusted", "trust_pickles": True}))


async def _speaks(host: EngineHost, model: ModelSpec) -> None:
    said = await run(host, model, *[{"text": word, "speaker_embedding": VOICE} for word in SPOKEN])
    for steps, each in zip(SPOKEN.values(), said, strict=True):
        samples, rate = soundfile.read(each.result["audio"][FILE])
        assert rate == 16_000
        assert len(samples) == pytest.approx(steps * STEP_S * rate, abs=2 * STEP_S * rate)
        assert samples.std() > 0, "it is silent"
