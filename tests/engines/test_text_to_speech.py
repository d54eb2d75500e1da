"""Speech: a SpeechT5 that was taught how long two words are, and untrained models of the other architectures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bitinglip.tasks.parameters import TextToSpeechResult
from bitinglip.workers.engine import FILE, JobFailed, JobProgressed, JobSpec, JobSucceeded, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_speech import SPOKEN, VOICES
from tests.engines.support import Said, load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEP_S = 0.032
"""Two frames of 256 samples at 16 kHz."""
PAUSE_S = 0.15


def heard(said: Said) -> Any:
    """Return the samples of a result."""
    samples, rate = soundfile.read(said.result["audio"][FILE])
    assert rate == said.result["audio"]["sample_rate"]
    assert len(samples) / rate == pytest.approx(said.result["audio"]["seconds"], abs=0.01)
    assert isinstance(said.answer, JobSucceeded)
    assert said.answer.usage.audio_out_ms == round(len(samples) / rate * 1000)
    return samples


async def test_each_word_is_as_long_as_it_was_taught(shared_host: EngineHost, speaker: ModelSpec) -> None:
    said = await run(shared_host, speaker, *[{"text": word} for word in SPOKEN])
    for steps, each in zip(SPOKEN.values(), said, strict=True):
        samples = heard(each)
        assert len(samples) == pytest.approx(steps * STEP_S * 16_000, abs=2 * STEP_S * 16_000)
        assert samples.std() > 0, "it is silent"
    assert {each.result["audio"]["media_type"] for each in said} == {"audio/wav"}


async def test_what_is_spoken_together_sounds_as_alone(shared_host: EngineHost, speaker: ModelSpec) -> None:
    asked = [{"text": word, "seed": 5, "voice": voice} for word in SPOKEN for voice in VOICES]
    together = await run(shared_host, speaker, *asked)
    for params, said in zip(asked, together, strict=True):
        (alone,) = await run(shared_host, speaker, params)
        assert np.abs(heard(alone) - heard(said)).max() < 1e-3
    assert np.abs(heard(together[0]) - heard(together[1])).max() > 1e-2, "both voices sound alike"


async def test_a_seed_repeats_and_is_told(shared_host: EngineHost, speaker: ModelSpec) -> None:
    (drawn,) = await run(shared_host, speaker, {"text": "certainly"})
    again, other = await run(
        shared_host,
        speaker,
        {"text": "certainly", "seed": drawn.result["seed"]},
        {"text": "certainly", "seed": drawn.result["seed"] + 1},
    )
    assert np.array_equal(heard(drawn), heard(again))
    assert not np.array_equal(heard(drawn), heard(other)[: len(heard(drawn))])


async def test_a_voice_may_be_a_vector(shared_host: EngineHost, speaker: ModelSpec) -> None:
    vector = np.linspace(VOICES["bruno"], 0.1, 16, dtype=np.float32).tolist()
    named, given, short = await run(
        shared_host,
        speaker,
        {"text": "yes", "seed": 1, "voice": "bruno"},
        {"text": "yes", "seed": 1, "speaker_embedding": vector},
        {"text": "yes", "speaker_embedding": [1.0, 2.0]},
    )
    assert np.array_equal(heard(named), heard(given))
    assert isinstance(short.answer, JobFailed)
    assert "takes 16" in short.answer.failure.message


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("speaker", {"voice": "clara"}, ("voice", "anna, bruno")),
        ("speaker", {"speed": 2.0}, ("speed",)),
        ("speaker", {"text": " \n "}, ("text",)),
        ("vits", {"voice": "3"}, ("voice", "0, 1, 2")),
        ("vits", {"speaker_embedding": [0.5]}, ("speaker_embedding", "voice")),
        ("bark", {"voice": "v2/en_speaker_1"}, ("voice",)),
    ],
)
async def test_what_cannot_be_spoken_says_which_parameter_is_wrong(
    request: pytest.FixtureRequest, shared_host: EngineHost, name: str, params: dict[str, Any], words: tuple[str, ...]
) -> None:
    model = request.getfixturevalue(name)
    bad, good = await run(shared_host, model, {"text": "yes"} | params, {"text": "yes"})
    assert isinstance(bad.answer, JobFailed)
    assert (bad.answer.failure.kind, bad.answer.failure.retryable) == ("bad_input", False)
    assert all(word in bad.answer.failure.message for word in words)
    assert len(heard(good)) > 0


@pytest.mark.parametrize("form", ["wav", "flac", "opus"])
async def test_a_sound_has_the_format_that_was_asked_for(
    shared_host: EngineHost, speaker: ModelSpec, form: str
) -> None:
    (said,) = await run(shared_host, speaker, {"text": "certainly", "format": form})
    info = soundfile.info(said.result["audio"][FILE])
    assert info.format == {"wav": "WAV", "flac": "FLAC", "opus": "OGG"}[form]
    assert info.duration == pytest.approx(SPOKEN["certainly"] * STEP_S, abs=0.1)


async def test_a_long_text_is_spoken_sentence_by_sentence(shared_host: EngineHost, speaker: ModelSpec) -> None:
    sentence = "yes " * 26 + "yes."  # longer than half of what the model takes
    (one,) = await run(shared_host, speaker, {"text": sentence, "seed": 3})
    (three,) = await run(shared_host, speaker, {"text": f"{sentence} {sentence}\n{sentence}", "seed": 3})
    assert len(heard(three)) == pytest.approx(3 * len(heard(one)) + 2 * PAUSE_S * 16_000, rel=0.01)
    assert three.ticks[-1].unit == "audio_ms"
    assert three.ticks[-1].step == pytest.approx(3 * len(heard(one)) / 16, rel=0.01)


async def test_a_cancel_ends_a_text_and_not_its_neighbour(shared_host: EngineHost, speaker: ModelSpec) -> None:
    key = await load(shared_host, speaker)
    jobs = [
        JobSpec(task_id="gone", params={"text": "certainly. " * 1500, "seed": 1}),
        JobSpec(task_id="kept", params={"text": "yes", "seed": 1}),
    ]
    answers: dict[str, str] = {}
    async for messages in shared_host.run(key, jobs):
        for message in messages:
            if not isinstance(message, JobProgressed):
                answers[message.task_id] = message.type
            elif message.task_id == "gone":
                shared_host.cancel("gone")
    assert answers == {"gone": "cancelled", "kept": "succeeded"}


async def test_a_vits_speaks_in_each_voice_and_at_each_speed(shared_host: EngineHost, vits: ModelSpec) -> None:
    base = {"text": "a few words to say", "seed": 7}
    first, same, other, slow = await run(
        shared_host, vits, base, base | {"voice": "0"}, base | {"voice": "2"}, base | {"speed": 0.5}
    )
    assert np.array_equal(heard(first), heard(same))
    assert not np.array_equal(heard(first), heard(other)[: len(heard(first))])
    assert len(heard(slow)) > 1.5 * len(heard(first))


async def test_a_bark_speaks(shared_host: EngineHost, bark: ModelSpec) -> None:
    first, same = await run(shared_host, bark, {"text": "hello", "seed": 1}, {"text": "hello", "seed": 1})
    assert np.array_equal(heard(first), heard(same))
    assert first.result["audio"]["sample_rate"] == 24_000
    assert heard(first).std() > 0


async def test_the_result_is_of_the_documented_shape(shared_host: EngineHost, speaker: ModelSpec) -> None:
    (said,) = await run(shared_host, speaker, {"text": "yes"})
    audio = {name: value for name, value in said.result["audio"].items() if name != FILE}
    stored = TextToSpeechResult.model_validate(said.result | {"audio": audio | {"sha256": "a" * 64, "size_bytes": 1}})
    assert set(stored.audio.model_dump()) == set(audio) | {"sha256", "size_bytes"}


async def test_the_vocoder_may_be_a_model_of_its_own(
    shared_host: EngineHost, speaker: ModelSpec, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(speaker.path or "", tmp_path / "copy"))
    vocoder = shutil.move(copy / "vocoder", tmp_path / "hifigan")
    alone = ModelSpec(kind="text-to-speech", reference="alone", path=str(copy))
    loaded = await shared_host.load(alone)
    assert isinstance(loaded, LoadFailed)
    assert "microsoft/speecht5_hifigan" in loaded.failure.message
    together = alone.model_copy(update={"reference": "together", "parts": {"vocoder": str(vocoder)}})
    (said,) = await run(shared_host, together, {"text": "yes"})
    assert heard(said).std() > 0


async def test_without_a_voice_it_says_what_to_give(
    shared_host: EngineHost, speaker: ModelSpec, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(speaker.path or "", tmp_path / "copy"))
    shutil.rmtree(copy / "voices")
    (said,) = await run(
        shared_host, ModelSpec(kind="text-to-speech", reference="mute", path=str(copy)), {"text": "yes"}
    )
    assert isinstance(said.answer, JobFailed)
    assert "speaker_embedding" in said.answer.failure.message


async def test_another_architecture_is_refused(shared_host: EngineHost, story: ModelSpec) -> None:
    loaded = await shared_host.load(ModelSpec(kind="text-to-speech", reference="story", path=story.path))
    assert isinstance(loaded, LoadFailed)
    assert "speecht5, vits, bark" in loaded.failure.message
    assert not loaded.failure.retryable
