"""How each architecture speaks: SpeechT5 with its vocoder, VITS, and Bark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from transformers import BarkModel, BarkProcessor, SpeechT5ForTextToSpeech, SpeechT5HifiGan, VitsModel

from bitinglip.tasks.parameters import TextToSpeechParameters
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.engines.failures import BadInputError, LoadError, described
from bitinglip.workers.engines.media import Samples
from bitinglip.workers.engines.quantize import tensor_bytes
from bitinglip.workers.engines.weights import Weights

VOCODER = "vocoder"
"""Folder in a SpeechT5's snapshot, or name of the model beside it, that turns its spectrograms into sound."""
VOICES = "voices"
"""Folder in a SpeechT5's snapshot with its speaker embeddings, each a .npy file that is named as the voice."""

Step = Callable[[float], None]
"""Told at each step how many milliseconds of sound there are; may raise, which ends the call."""


class Speaking(Protocol):
    """One architecture's way to speak."""

    sample_rate: int
    most_together: int
    """Texts of one call."""
    most_characters: int
    """Length of a text."""
    more_bytes: int
    """Memory of what it has beside the model."""

    def voice(self, params: TextToSpeechParameters) -> Any:
        """Return the voice that was asked for, as `speak` takes it.

        Raises:
            BadInputError: the model has no such voice, or cannot vary its speed.
        """
        ...

    def speak(self, texts: Sequence[str], voices: Sequence[Any], step: Step) -> list[Samples]:
        """Speak texts together, each in its voice; torch's generator is seeded by the caller."""
        ...


class SpeechT5:
    """Text to a mel spectrogram, two frames a step, then to sound; a voice is a vector."""

    most_together = 8

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._weights = weights
        self._vocoder: Any = _vocoder(spec, weights)
        self.more_bytes = tensor_bytes((*self._vocoder.parameters(), *self._vocoder.buffers()))
        self._voices = {file.stem: _embedding(file) for file in sorted((Path(spec.path or "") / VOICES).glob("*.npy"))}
        config: Any = weights.model.config
        self._size = int(config.speaker_embedding_dim)
        self.most_characters = min(250, int(config.max_text_positions) - 10)
        vocoder = self._vocoder.config
        self.sample_rate = int(vocoder.sampling_rate)
        self._hop = int(np.prod(vocoder.upsample_rates))
        self._step_ms = config.reduction_factor * self._hop / self.sample_rate * 1000

    def voice(self, params: TextToSpeechParameters) -> tuple[float, ...]:
        """Return the speaker embedding that was given, or of the voice that was named."""
        _one_speed(params)
        if params.speaker_embedding is not None:
            if len(params.speaker_embedding) != self._size:
                raise BadInputError(
                    f"speaker_embedding: it has {len(params.speaker_embedding)} numbers; this model takes {self._size}."
                )
            return params.speaker_embedding
        if not self._voices:
            raise BadInputError(
                f"speaker_embedding: this model has no voice of its own; give one of {self._size} numbers (an x-vector "
                f"of the speaker), or put voices as {VOICES}/NAME.npy into the model's folder."
            )
        return _named(self._voices, params.voice)

    def speak(self, texts: Sequence[str], voices: Sequence[tuple[float, ...]], step: Step) -> list[Samples]:
        """Speak texts together; a row that ends before the others is kept, and cut where it ended."""
        model = self._weights.model
        inputs = self._weights.tokenizer(list(texts), padding=True, return_tensors="pt").to(self._weights.device)
        steps = 0

        def stepped(*_: Any) -> None:
            nonlocal steps
            steps += 1
            step(steps * self._step_ms)

        with _hooked([model.speecht5.decoder.wrapped_decoder], stepped):
            spectra, lengths = model.generate_speech(
                inputs["input_ids"],
                torch.tensor(voices, device=self._weights.device, dtype=model.dtype),  # (B, E)
                attention_mask=inputs["attention_mask"],
                return_output_lengths=True,
            )  # (B, frames, mels), B lengths
        return [_samples(self._vocoder(spectrum[:length])) for spectrum, length in zip(spectra, lengths, strict=True)]


class Vits:
    """Text to sound in one pass; a voice is a number. One text at a time: its noise is drawn for the whole batch."""

    most_together = 1
    most_characters = 400
    more_bytes = 0

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._weights = weights
        self._voices = [str(number) for number in range(max(1, int(weights.model.config.num_speakers)))]
        self.sample_rate = int(weights.model.config.sampling_rate)

    def voice(self, params: TextToSpeechParameters) -> tuple[int, float]:
        """Return the speaker's number and the speed."""
        _no_embedding(params)
        return int(_named({name: name for name in self._voices}, params.voice)), params.speed

    def speak(self, texts: Sequence[str], voices: Sequence[tuple[int, float]], step: Step) -> list[Samples]:
        """Speak texts one after the other."""
        return [self._speak(text, *voice, step) for text, voice in zip(texts, voices, strict=True)]

    def _speak(self, text: str, speaker: int, speed: float, step: Step) -> Samples:
        step(0)
        model = self._weights.model
        inputs = self._weights.tokenizer(text, return_tensors="pt").to(self._weights.device)
        if inputs["input_ids"].shape[1] == 0:
            raise BadInputError("text: the model has no sign for any of its letters.")
        said = model(
            **inputs,
            speaker_id=speaker if len(self._voices) > 1 else None,
            speaking_rate=float(model.config.speaking_rate) * speed,
        )
        return _samples(said.waveform[0])


class Bark:
    """Text to semantic, coarse and fine tokens, then to sound; a voice is a preset of the snapshot's."""

    most_together = 1
    most_characters = 200
    more_bytes = 0

    def __init__(self, spec: ModelSpec, weights: Weights) -> None:
        self._weights = weights
        self._processor: Any = BarkProcessor.from_pretrained(spec.path, local_files_only=True)
        self.sample_rate = int(weights.model.generation_config.sample_rate)

    def voice(self, params: TextToSpeechParameters) -> str | None:
        """Return the preset's name; without one, each text is spoken in a voice that is drawn."""
        _no_embedding(params)
        _one_speed(params)
        if params.voice is None:
            return None
        return _named({name: name for name in self._processor.available_voice_presets}, params.voice)

    def speak(self, texts: Sequence[str], voices: Sequence[str | None], step: Step) -> list[Samples]:
        """Speak texts one after the other."""
        return [self._speak(text, voice, step) for text, voice in zip(texts, voices, strict=True)]

    def _speak(self, text: str, voice: str | None, step: Step) -> Samples:
        model = self._weights.model
        inputs = self._processor(text, voice_preset=voice, return_tensors="pt").to(self._weights.device)
        stages = [model.semantic, model.coarse_acoustics, model.fine_acoustics]
        with _hooked(stages, lambda *_: step(0)):
            return _samples(model.generate(**inputs)[0])


ARCHITECTURES: dict[str, tuple[Any, Callable[[ModelSpec, Weights], Speaking]]] = {
    "speecht5": (SpeechT5ForTextToSpeech, SpeechT5),
    "vits": (VitsModel, Vits),
    "bark": (BarkModel, Bark),
}
"""Type of a model, as its configuration names it -> the class that loads it, and the way that it speaks."""


def _vocoder(spec: ModelSpec, weights: Weights) -> Any:
    own = Path(spec.path or "") / VOCODER
    folder = own if (own / "config.json").is_file() else spec.parts.get(VOCODER)
    if folder is None:
        raise LoadError(
            f"{spec.reference}: its vocoder is missing: put it into the folder {VOCODER}/ of the model, or beside the "
            "model as microsoft/speecht5_hifigan."
        )
    try:
        vocoder: Any = SpeechT5HifiGan.from_pretrained(
            folder,
            dtype=weights.model.dtype,
            use_safetensors=None if spec.trust_pickles else True,
            local_files_only=True,
        )
    except (OSError, ValueError) as error:
        problem = described(error).splitlines()[0].replace(str(folder), VOCODER)
        raise LoadError(f"{spec.reference}: its vocoder cannot be loaded: {problem}") from error
    return vocoder.to(weights.device).eval()


def _embedding(file: Path) -> tuple[float, ...]:
    return tuple(np.load(file, allow_pickle=False).astype(np.float32).reshape(-1).tolist())


def _named(voices: dict[str, Any], name: str | None) -> Any:
    if name is None:
        return next(iter(voices.values()))
    if name not in voices:
        known = ", ".join(list(voices)[:50]) or "none"
        raise BadInputError(f"voice: this model does not have {name!r}; it has {known}.")
    return voices[name]


def _no_embedding(params: TextToSpeechParameters) -> None:
    if params.speaker_embedding is not None:
        raise BadInputError("speaker_embedding: this model takes none; choose a 'voice'.")


def _one_speed(params: TextToSpeechParameters) -> None:
    if params.speed != 1.0:
        raise BadInputError("speed: this model cannot vary it.")


@contextmanager
def _hooked(modules: Sequence[Any], hook: Callable[..., None]) -> Any:
    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(hook).remove)
        yield


def _samples(waveform: torch.Tensor) -> Samples:
    return cast("Samples", waveform.float().cpu().numpy().reshape(-1))
