"""Transcripts from a small Whisper that was taught one for each of three tones, in two languages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile

from bitinglip.workers.engine import JobFailed, JobProgressed, JobSpec, JobSucceeded, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_speech import HEARD, RATE, tones
from tests.engines.support import load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOW, MIDDLE, HIGH = HEARD
TEXTS = {hertz: text.strip() for hertz, (_, text) in HEARD.items()}
LONG = ((LOW, 1.5), (0.0, 0.5), (HIGH, 1.5), (0.0, 0.5), (MIDDLE, 1.0), (0.0, 1.0))
"""Three windows, a tone in each."""
LONG_TEXT = f"{TEXTS[LOW]} {TEXTS[HIGH]} {TEXTS[MIDDLE]}"


class Recordings:
    """Files of tones, by the names of their artifacts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, Path] = {}

    def add(self, *parts: tuple[float, float]) -> str:
        """Write tones into a file; returns the name of its artifact."""
        name = "artifact:" + f"{len(self.files):064x}"
        path = self._folder / f"{len(self.files)}.wav"
        soundfile.write(path, tones(*parts), RATE)
        self.files[name] = path
        return name


@pytest.fixture
def recordings(tmp_path: Path) -> Recordings:
    """Recordings of the test's own."""
    return Recordings(tmp_path)


async def test_each_recording_is_written_down_in_its_language(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    asked = [{"audio": recordings.add((hertz, 1.0))} for hertz in HEARD]
    said = await run(shared_host, listener, *asked, files=recordings.files)
    assert [(each.result["language"], each.result["text"]) for each in said] == [
        (language, text.strip()) for language, text in HEARD.values()
    ]
    assert {each.result["seconds"] for each in said} == {1.0}
    assert {each.answer.usage.audio_in_ms for each in said if isinstance(each.answer, JobSucceeded)} == {1000}
    assert all(each.result["segments"] == [] for each in said)


@pytest.mark.parametrize(("form", "rate"), [("wav", 44_100), ("flac", 8_000), ("ogg", 48_000)])
async def test_a_recording_may_have_another_format_and_rate(
    shared_host: EngineHost, listener: ModelSpec, tmp_path: Path, form: str, rate: int
) -> None:
    import numpy as np
    import soxr

    sound = soxr.resample(tones((MIDDLE, 1.0)), RATE, rate)
    path = tmp_path / f"sound.{form}"
    soundfile.write(path, np.stack([sound, sound], axis=1), rate)
    name = "artifact:" + "a" * 64
    (said,) = await run(shared_host, listener, {"audio": name}, files={name: path})
    assert said.result["text"] == TEXTS[MIDDLE]


async def test_a_long_recording_is_heard_to_its_end_with_short_ones(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    asked = [{"audio": recordings.add(*LONG)}, {"audio": recordings.add((LOW, 1.0))}, {"audio": recordings.add(*LONG)}]
    said = await run(shared_host, listener, *asked, files=recordings.files)
    assert [each.result["text"] for each in said] == [LONG_TEXT, TEXTS[LOW], LONG_TEXT]
    last = said[0].ticks[-1]
    assert (last.step, last.total, last.unit) == (6000, 6000, "audio_ms")


async def test_segments_tell_their_times_in_the_whole_recording(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    asked = {"audio": recordings.add(*LONG), "timestamps": "segment"}
    (said,) = await run(shared_host, listener, asked, files=recordings.files)
    told = [(part["text"], part["start_s"], part["end_s"]) for part in said.result["segments"]]
    assert told == [
        (TEXTS[LOW], 0.0, pytest.approx(1.5, abs=0.1)),
        (TEXTS[HIGH], 2.0, pytest.approx(3.5, abs=0.1)),
        (TEXTS[MIDDLE], 4.0, pytest.approx(5.0, abs=0.1)),
    ]


async def test_words_tell_their_times_one_after_the_other(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    asked = {"audio": recordings.add(*LONG), "timestamps": "word"}
    (said,) = await run(shared_host, listener, asked, files=recordings.files)
    parts = said.result["segments"]
    assert " ".join(part["text"] for part in parts) == LONG_TEXT
    assert [part["text"] for part in parts][-2:] == TEXTS[MIDDLE].split()
    moments = [moment for part in parts for moment in (part["start_s"], part["end_s"])]
    assert moments == sorted(moments)
    assert moments[-1] <= 6.0


async def test_a_long_recording_in_parts_is_the_same_as_in_one(
    listener: ModelSpec, recordings: Recordings, tmp_path: Path
) -> None:
    """The parts are cut where it is quiet, and their times go on; in a process that cuts them short."""
    import asyncio
    import json
    import sys

    name = recordings.add(*LONG, *LONG)
    code = f"""
import json
from pathlib import Path
from bitinglip.tasks.parameters import SpeechToTextParameters
from bitinglip.workers.engine import Job, ModelSpec, Placement
from bitinglip.workers.engines import speech_to_text as engine
engine.PART_S, engine.PAUSE_S = 6, 0.1
class Sink:
    def progress(self, *_): pass
    def succeed(self, task_id, result, usage): print(json.dumps(result))
    def fail(self, task_id, failure): print(failure)
model = engine.load(ModelSpec(kind="speech-to-text", reference="w", path={listener.path!r}), Placement("cpu"), print)
params = SpeechToTextParameters(audio={name!r}, timestamps="segment")
model.run([Job("a", params, files={{ {name!r}: {str(recordings.files[name])!r} }})], Sink())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    result = json.loads(out.splitlines()[-1])
    # The second part begins up to PAUSE_S early, and leaves so much silence to the end, of which nothing was taught.
    assert result["text"].startswith(f"{LONG_TEXT} {LONG_TEXT}")
    starts = [part["start_s"] for part in result["segments"]]
    assert starts[:6] == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], abs=0.6)
    assert result["seconds"] == 12.0


@pytest.mark.parametrize("name", ["de", "German", "DE"])
async def test_the_language_may_be_told(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings, name: str
) -> None:
    asked = {"audio": recordings.add((HIGH, 1.0)), "language": name}
    (said,) = await run(shared_host, listener, asked, files=recordings.files)
    assert (said.result["language"], said.result["text"]) == ("de", TEXTS[HIGH])


async def test_a_language_that_it_does_not_know_fails_alone(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    name = recordings.add((LOW, 1.0))
    bad, good = await run(
        shared_host, listener, {"audio": name, "language": "klingon"}, {"audio": name}, files=recordings.files
    )
    assert isinstance(bad.answer, JobFailed)
    assert (bad.answer.failure.kind, bad.answer.failure.retryable) == ("bad_input", False)
    assert "de, en, fr" in bad.answer.failure.message
    assert good.result["text"] == TEXTS[LOW]


async def test_what_is_no_recording_is_refused(shared_host: EngineHost, listener: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "text.wav"
    path.write_text("this is no sound")
    name = "artifact:" + "a" * 64
    (said,) = await run(shared_host, listener, {"audio": name}, files={name: path})
    assert isinstance(said.answer, JobFailed)
    assert said.answer.failure.message.startswith("audio: ")


async def test_a_cancel_ends_a_long_recording_and_not_its_neighbour(
    shared_host: EngineHost, listener: ModelSpec, recordings: Recordings
) -> None:
    key = await load(shared_host, listener)
    files: dict[str, str] = {}
    long, short = recordings.add(*LONG * 40), recordings.add(*LONG)
    files = {name: str(path) for name, path in recordings.files.items()}
    jobs = [
        JobSpec(task_id=task_id, params={"audio": name}, files=files)
        for task_id, name in (("gone", long), ("kept", short))
    ]
    answers: dict[str, Any] = {}
    furthest = 0
    async for messages in shared_host.run(key, jobs):
        for message in messages:
            if not isinstance(message, JobProgressed):
                answers[message.task_id] = message
            elif message.task_id == "gone":
                furthest = message.step
                shared_host.cancel("gone")
    assert {task_id: answer.type for task_id, answer in answers.items()} == {"gone": "cancelled", "kept": "succeeded"}
    assert furthest < 240_000


async def test_another_architecture_is_refused(shared_host: EngineHost, story: ModelSpec) -> None:
    loaded = await shared_host.load(ModelSpec(kind="speech-to-text", reference="story", path=story.path))
    assert isinstance(loaded, LoadFailed)
    assert "story" in loaded.failure.message
