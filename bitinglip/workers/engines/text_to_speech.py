"""`text-to-speech`: SpeechT5, VITS (MMS) and Bark; a long text is spoken sentence by sentence."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import TextToSpeechParameters
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
from bitinglip.workers.engines.sentences import pieces
from bitinglip.workers.engines.speaking import ARCHITECTURES, Speaking
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights, safe_folder

log = logging.getLogger(__name__)

PAUSE_S = 0.15
"""Silence between two pieces of a text."""
SEED_BITS = 31


class _CancelledError(Exception):
    """Every job of a call was cancelled."""


@dataclass(slots=True)
class _Job:
    """A job on its way: what was spoken so far."""

    job: Job[TextToSpeechParameters]
    sink: Sink
    texts: list[str]
    voice: Any
    seed: int
    spoken: dict[int, media.Samples] = field(default_factory=dict[int, media.Samples])
    spoken_ms: float = 0.0
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


_Piece = tuple[_Job, int]
"""One piece to speak: its job, and which of the job's pieces it is."""


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load a model that speaks from its folder.

    Raises:
        UnusableModelError: it speaks, but in a way that is not known here.
        LoadError: the folder is missing or broken.
    """
    try:
        kind = AutoConfig.from_pretrained(
            safe_folder(spec), local_files_only=True, trust_remote_code=spec.trust_code
        ).model_type
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{spec.reference}: its configuration cannot be read: {described(error)}") from error
    if kind not in ARCHITECTURES:
        raise UnusableModelError(f"{spec.reference}: it is a {kind}; known are {', '.join(ARCHITECTURES)}.")
    auto, way = ARCHITECTURES[kind]
    weights = load_weights(auto, spec, placement, progress)
    return Speaker(weights, way(spec, weights))


class Speaker:
    """A loaded model that speaks."""

    def __init__(self, weights: Weights, way: Speaking) -> None:
        self._weights = weights
        self._way: Speaking | None = way
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes + way.more_bytes

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[TextToSpeechParameters]], sink: Sink) -> None:
        """Speak all texts, those of the same seed and of about the same length together."""
        assert self._way is not None, "it was unloaded"
        drawn = secrets.randbits(SEED_BITS)  # one for all: what shares its noise can be spoken together
        calls: dict[int, list[_Piece]] = {}
        for job in jobs:
            seed = drawn if job.params.seed is None else job.params.seed
            try:
                whole = _Job(job, sink, _texts(job, self._way), self._way.voice(job.params), seed)
            except BadInputError as error:
                sink.fail(job.task_id, run_failure(error))
                continue
            calls.setdefault(seed, []).extend((whole, number) for number in range(len(whole.texts)))
        for seed, batch in calls.items():
            batch.sort(key=lambda piece: (piece[1], len(piece[0].texts[piece[1]])))
            for start in range(0, len(batch), self._way.most_together):
                self._speak(seed, batch[start : start + self._way.most_together])

    def unload(self) -> None:
        """Drop the weights."""
        self._way = None
        self._weights.drop()

    # --- speaking -----------------------------------------------------------------------------------------------------

    def _speak(self, seed: int, batch: list[_Piece]) -> None:
        """Speak pieces in one call; without the memory for all at once, half of them first."""
        batch = [piece for piece in batch if not piece[0].check_cancelled()]
        if not batch:
            return
        try:
            spoken = self._call(seed, batch)
        except _CancelledError:
            return
        except Exception as error:  # noqa: BLE001  (whatever a library raises is the failure of these jobs alone)
            if not is_out_of_memory(error) or len(batch) == 1:
                for job, _ in batch:
                    job.fail(error)
                return
        else:
            for (job, number), samples in zip(batch, spoken, strict=True):
                self._take(job, number, samples)
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        log.warning("no room for %d texts at once; trying half of them", len(batch))
        self._speak(seed, batch[: len(batch) // 2])
        self._speak(seed, batch[len(batch) // 2 :])

    def _call(self, seed: int, batch: list[_Piece]) -> list[media.Samples]:
        assert self._way is not None, "it was unloaded"
        torch.manual_seed(seed)
        texts = [job.texts[number] for job, number in batch]
        return self._way.speak(texts, [job.voice for job, _ in batch], lambda ms: _stepped(batch, ms))

    def _take(self, job: _Job, number: int, samples: media.Samples) -> None:
        assert self._way is not None, "it was unloaded"
        rate = self._way.sample_rate
        job.spoken[number] = samples
        job.spoken_ms += len(samples) / rate * 1000
        if job.check_cancelled():
            return
        job.sink.progress(job.job.task_id, round(job.spoken_ms), None, "audio_ms")
        if len(job.spoken) < len(job.texts):
            return
        job.over = True
        pause = np.zeros(round(PAUSE_S * rate), dtype=np.float32)
        parts = [part for index in range(len(job.texts)) for part in (job.spoken[index], pause)][:-1]
        sound = np.concatenate(parts)
        audio = media.write_sound(job.job, sound, rate, job.job.params.format)
        usage = Usage(audio_out_ms=round(len(sound) / rate * 1000))
        job.sink.succeed(job.job.task_id, {"audio": audio, "seed": job.seed}, usage)


def _texts(job: Job[TextToSpeechParameters], way: Speaking) -> list[str]:
    texts = pieces(job.params.text, way.most_characters)
    if not texts:
        raise BadInputError("text: there is nothing to say in it.")
    return texts


def _stepped(batch: list[_Piece], ms: float) -> None:
    jobs = {id(job): job for job, _ in batch}.values()
    for job in jobs:
        if not job.check_cancelled():
            job.sink.progress(job.job.task_id, round(job.spoken_ms + ms), None, "audio_ms")
    if all(job.over for job in jobs):
        raise _CancelledError
