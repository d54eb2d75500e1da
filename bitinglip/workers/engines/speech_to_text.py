"""`speech-to-text`: Whisper, for recordings of any length, with the times of segments and words."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from transformers import AutoFeatureExtractor, AutoModelForSpeechSeq2Seq
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import SpeechToTextParameters
from bitinglip.workers.engine import Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines import media
from bitinglip.workers.engines.failures import (
    BadInputError,
    LoadError,
    UnusableModelError,
    described,
    is_out_of_memory,
    run_failure,
)
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights
from bitinglip.workers.engines.words import words

log = logging.getLogger(__name__)

MOST_TOGETHER = 8
"""Recordings that are written down together; memory may halve them."""
PART_S = 1800
"""A longer recording is written down in parts: its spectrum would take gigabytes."""
PAUSE_S = 10
"""How far from a part's end the quietest moment is looked for, to cut there."""
FRAME_MS = 10


class _CancelledError(Exception):
    """Every job of a call was cancelled."""


@dataclass(slots=True)
class _Job:
    """A job on its way: what was written down so far."""

    job: Job[SpeechToTextParameters]
    sink: Sink
    samples: int
    language: str | None
    segments: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    texts: list[str] = field(default_factory=list[str])
    over: bool = False

    def check_cancelled(self) -> bool:
        """Answer the job if it was cancelled; tells whether it is over."""
        if self.job.cancelled.is_set() and not self.over:
            self.over = True
            self.sink.cancel(self.job.task_id)
        return self.over

    def fail(self, error: Exception) -> None:
        """Answer the job with a failure, unless it is over."""
        if not self.over:
            self.over = True
            self.sink.fail(self.job.task_id, run_failure(error))


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a recording: (samples,), and where it begins in seconds."""

    job: _Job
    samples: media.Samples
    start_s: float


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load a Whisper from its folder.

    Raises:
        UnusableModelError: it hears, but is no Whisper.
        LoadError: the folder is missing or broken.
    """
    weights = load_weights(AutoModelForSpeechSeq2Seq, spec, placement, progress)
    if weights.model.config.model_type != "whisper":
        raise UnusableModelError(f"{spec.reference}: it is a {weights.model.config.model_type}; this takes Whisper.")
    try:
        extractor = AutoFeatureExtractor.from_pretrained(
            spec.path, local_files_only=True, trust_remote_code=spec.trust_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{spec.reference}: its feature extractor cannot be loaded: {described(error)}") from error
    return Listener(weights, extractor)


class Listener:
    """A loaded Whisper."""

    def __init__(self, weights: Weights, extractor: Any) -> None:
        self._weights = weights
        self._extractor: Any = extractor
        self._rate = int(extractor.sampling_rate)
        self._window = int(extractor.n_samples)
        config = weights.model.generation_config
        self._languages = {
            text.strip("<|>"): token for text, token in (getattr(config, "lang_to_id", None) or {}).items()
        }
        self._multilingual = bool(getattr(config, "is_multilingual", self._languages)) and bool(self._languages)
        self._end = int(weights.model.config.eos_token_id)
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[SpeechToTextParameters]], sink: Sink) -> None:
        """Write down all recordings; those that are asked in the same way together, the short ones first."""
        parts = [part for job in jobs for part in self._parts(job, sink)]
        for _, alike in groupby(sorted(parts, key=self._way), key=lambda part: self._way(part)[:-1]):
            together = list(alike)
            for start in range(0, len(together), MOST_TOGETHER):
                self._hear(together[start : start + MOST_TOGETHER])

    def unload(self) -> None:
        """Drop the weights."""
        self._weights.drop()

    def _parts(self, job: Job[SpeechToTextParameters], sink: Sink) -> Iterator[_Part]:
        try:
            language = self._language(job.params)
            self._check_times(job.params)
            samples = media.read_audio(job, "audio", job.params.audio, self._rate)
        except BadInputError as error:
            sink.fail(job.task_id, run_failure(error))
            return
        whole = _Job(job, sink, len(samples), language)
        start = 0
        while start < len(samples):
            end = media.quiet_end(samples, start, round(PART_S * self._rate), round(PAUSE_S * self._rate))
            yield _Part(whole, samples[start:end], start / self._rate)
            start = end

    def _check_times(self, params: SpeechToTextParameters) -> None:
        heads = getattr(self._weights.model.generation_config, "alignment_heads", None)
        if params.timestamps == "word" and not heads:
            raise BadInputError("timestamps: this model cannot tell when each word was said; ask for 'segment'.")

    def _language(self, params: SpeechToTextParameters) -> str | None:
        if not self._multilingual:
            if params.translate or (params.language or "en").lower() not in {"en", "english"}:
                raise BadInputError("language: this model knows English alone.")
            return None
        if params.language is None:
            return None
        name = params.language.lower()
        code = TO_LANGUAGE_CODE.get(name, name)
        if code not in self._languages:
            known = ", ".join(sorted(self._languages)[:100])
            raise BadInputError(f"language: this model does not know {params.language!r}; it knows {known}.")
        return code

    def _way(self, part: _Part) -> tuple[Any, ...]:
        """What must be equal for parts to be heard in one call; those of one job in order, the short ones first."""
        params = part.job.job.params
        return (
            part.start_s,
            params.translate,
            params.timestamps,
            len(part.samples) > self._window,
            len(part.samples),
        )

    # --- listening ----------------------------------------------------------------------------------------------------

    def _hear(self, parts: list[_Part]) -> None:
        """Write parts down in one call; without the memory for all at once, half of them first."""
        parts = [part for part in parts if not part.job.check_cancelled()]
        if not parts:
            return
        try:
            heard = self._call(parts)
        except _CancelledError:
            return
        except Exception as error:  # noqa: BLE001  (whatever a library raises is the failure of these jobs alone)
            if not is_out_of_memory(error) or len(parts) == 1:
                for part in parts:
                    part.job.fail(error)
                return
        else:
            for part, segments in zip(parts, heard, strict=True):
                self._take(part, segments)
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        log.warning("no room for %d recordings at once; trying half of them", len(parts))
        self._hear(parts[: len(parts) // 2])
        self._hear(parts[len(parts) // 2 :])

    def _call(self, parts: list[_Part]) -> list[list[dict[str, Any]]]:
        """Return each part's segments, as the library gives them: start, end, tokens, maybe their times."""
        params = parts[0].job.job.params
        long = len(parts[0].samples) > self._window
        inputs = self._extractor(
            [part.samples for part in parts],
            sampling_rate=self._rate,
            return_tensors="pt",
            return_attention_mask=True,
            truncation=False,
            padding="longest" if long else "max_length",
        )
        model = self._weights.model
        features = inputs["input_features"].to(self._weights.device, model.dtype)  # (B, mels, frames)
        options: dict[str, Any] = {"return_timestamps": long or params.timestamps != "none"}
        if params.timestamps == "word":
            options["return_token_timestamps"] = True
        if self._multilingual:
            self._detect([part.job for part in parts], features)
            options |= {
                "language": [part.job.language for part in parts],
                "task": "translate" if params.translate else "transcribe",
            }
        said = model.generate(
            input_features=features,
            attention_mask=inputs["attention_mask"].to(self._weights.device),
            return_segments=True,
            monitor_progress=lambda windows: self._progressed(parts, windows),
            stopping_criteria=StoppingCriteriaList([_Cancels([part.job for part in parts])]),
            **options,
        )
        return said["segments"]

    def _detect(self, jobs: list[_Job], features: torch.Tensor) -> None:
        """Find out the languages that were not given, from the first window of each recording."""
        unknown = [index for index, job in enumerate(jobs) if job.language is None]
        if unknown:
            model = self._weights.model
            frames = self._window // self._extractor.hop_length
            tokens = model.detect_language(features[unknown, :, :frames], num_segment_frames=frames).tolist()
            names = {token: name for name, token in self._languages.items()}
            for index, token in zip(unknown, tokens, strict=True):
                jobs[index].language = names[token]

    def _progressed(self, parts: list[_Part], windows: torch.Tensor) -> None:
        """Report where each recording is: (B, 2), the frame that comes next and how many there are."""
        for part, (done, _) in zip(parts, windows.tolist(), strict=True):
            self._report(part.job, part.start_s * 1000 + done * FRAME_MS)
        _stop_if_over([part.job for part in parts])

    def _report(self, job: _Job, done_ms: float) -> None:
        total = round(job.samples / self._rate * 1000)
        if not job.check_cancelled():
            job.sink.progress(job.job.task_id, min(round(done_ms), total), total, "audio_ms")

    # --- what was heard -----------------------------------------------------------------------------------------------

    def _take(self, part: _Part, segments: list[dict[str, Any]]) -> None:
        job = part.job
        if job.check_cancelled():
            return
        end_s = part.start_s + len(part.samples) / self._rate
        for segment in segments:
            job.segments.extend(self._segments(part, segment, end_s))
            job.texts.append(self._text(segment["tokens"].tolist()))
        if round(end_s * self._rate) < job.samples:
            return
        self._report(job, end_s * 1000)
        job.over = True
        timed = job.job.params.timestamps != "none"
        job.sink.succeed(
            job.job.task_id,
            {
                "text": "".join(job.texts).strip(),
                "language": job.language or "en",
                "seconds": round(job.samples / self._rate, 3),
                "segments": job.segments if timed else [],
            },
            Usage(audio_in_ms=round(job.samples / self._rate * 1000)),
        )

    def _segments(self, part: _Part, segment: dict[str, Any], end_s: float) -> Iterator[dict[str, Any]]:
        """Return a segment, or its words, with times in the whole recording, none of them after its end."""

        def time(moment: float) -> float:
            return round(min(part.start_s + moment, end_s), 2)

        tokens = segment["tokens"].tolist()
        if part.job.job.params.timestamps != "word":
            text = self._text(tokens).strip()
            if text:
                yield {"start_s": time(float(segment["start"])), "end_s": time(float(segment["end"])), "text": text}
            return
        starts = [float(moment) for moment in segment["token_timestamps"]]
        spoken = [(token, start) for token, start in zip(tokens, starts, strict=False) if token < self._end]
        decode = self._weights.tokenizer.decode
        for text, first, after in words([token for token, _ in spoken], decode, part.job.language or "en"):
            last = spoken[after][1] if after < len(spoken) else max(float(segment["end"]), spoken[-1][1])
            yield {"start_s": time(spoken[first][1]), "end_s": time(last), "text": text.strip()}

    def _text(self, tokens: list[int]) -> str:
        """Return the text of tokens; those from the end token on are commands and times."""
        return self._weights.tokenizer.decode([token for token in tokens if token < self._end])


class _Cancels(StoppingCriteria):
    """Looks at each token whether jobs were cancelled; when all of them were, generation stops."""

    def __init__(self, jobs: list[_Job]) -> None:
        self._jobs = jobs

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return that no row is over, (B)."""
        _stop_if_over(self._jobs)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _stop_if_over(jobs: list[_Job]) -> None:
    if all([job.check_cancelled() for job in jobs]):  # every one of them is asked
        raise _CancelledError
