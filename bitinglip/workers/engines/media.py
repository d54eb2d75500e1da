"""Pictures and sounds, in and out: what strangers send is checked before a model sees it.

Only the formats named here are read, by the bytes and not by what they are called; sizes are bounded before anything is
unpacked; what is cut off in the midst is refused.
"""

from __future__ import annotations

import io
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from bitinglip.workers.engine import Job, result_file
from bitinglip.workers.engines.failures import BadInputError

Samples = np.ndarray[Any, np.dtype[np.float32]]
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 64 * 1024 * 1024
MOST_SIDE = 16_384
AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3", "AIFF")
MOST_SECONDS = 4 * 3600
SAMPLE_RATES = (1_000, 192_000)
MOST_CHANNELS = 8
SOUND_FORMATS = {
    "wav": ("WAV", "PCM_16", "audio/wav"),
    "flac": ("FLAC", "PCM_16", "audio/flac"),
    "opus": ("OGG", "OPUS", "audio/ogg; codecs=opus"),
}
"""Format of a result -> soundfile's format and subtype, and the media type."""
STREAMED_BYTES = 0x7FFF_0000
"""A WAV that was written into a pipe says at its beginning that it has this size, or more."""
BLOCK_SAMPLES = 1 << 18
OPUS_RATE = 48_000
"""Opus knows a few sample rates; every sound is brought to this one."""


def read_image(job: Job[Any], name: str, text: str) -> Image.Image:
    """Return the picture that a parameter names, upright and in RGB.

    Raises:
        BadInputError: it is no picture in one of `IMAGE_FORMATS`, too large, or not whole.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the bounds below are stricter
        try:
            with Image.open(io.BytesIO(_bytes(job, name, text)), formats=IMAGE_FORMATS) as image:
                _check_size(name, image)
                image.load()
                upright = ImageOps.exif_transpose(image)
                return _on_white(upright)
        except UnidentifiedImageError as error:
            raise BadInputError(f"{name}: this is no picture in {', '.join(IMAGE_FORMATS)}.") from error
        except Image.DecompressionBombError as error:
            raise BadInputError(f"{name}: the picture is larger than {MOST_PIXELS:,} pixels.") from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise BadInputError(f"{name}: the picture is damaged or cut off ({error}).") from error


def read_audio(job: Job[Any], name: str, text: str, sample_rate: int) -> Samples:
    """Return the recording that a parameter names: one channel, (samples,), at this rate, within -1 to 1.

    Raises:
        BadInputError: it is no recording in one of `AUDIO_FORMATS`, too long, empty, or not whole.
    """
    body = _bytes(job, name, text)
    _check_riff(name, body)
    try:
        with soundfile.SoundFile(io.BytesIO(body)) as recording:
            _check_length(name, recording)
            samples, read = _one_channel(recording, sample_rate)
            frames = recording.frames
    except soundfile.SoundFileError as error:
        raise BadInputError(f"{name}: this is no recording in {', '.join(AUDIO_FORMATS)}, or it is damaged.") from error
    if read < frames:
        raise BadInputError(f"{name}: the recording is cut off after {read} of {frames} samples.")
    if not np.isfinite(samples).all():
        raise BadInputError(f"{name}: the recording has samples that are no numbers.")
    return samples


def quiet_end(samples: Samples, start: int, most: int, around: int) -> int:
    """Return where a part that begins at `start` ends: at most `most` samples later, where it is quiet."""
    if len(samples) - start <= most:
        return len(samples)
    end = start + most
    step = max(1, around // 100)
    tail = samples[end - around : end]
    loudness = np.square(tail[: len(tail) // step * step]).reshape(-1, step).mean(axis=1)  # (around / step)
    return end - around + int(loudness.argmin()) * step + step // 2


def write_image(job: Job[Any], image: Image.Image, notes: Mapping[str, str], **more: Any) -> dict[str, Any]:
    """Write a result's picture as PNG, with notes in its metadata (iTXt); returns its part of the result."""
    info = PngImagePlugin.PngInfo()
    for key, value in notes.items():
        info.add_itxt(key, value)
    path = _new_file(job, "png")
    image.save(path, "PNG", pnginfo=info)
    return result_file(path, "image/png", width=image.width, height=image.height, **more)


def write_sound(job: Job[Any], samples: Samples, sample_rate: int, wanted: str) -> dict[str, Any]:
    """Write a result's sound, (samples,) within -1 to 1; returns its part of the result."""
    form, subtype, media_type = SOUND_FORMATS[wanted]
    seconds = len(samples) / sample_rate
    if subtype == "OPUS":
        samples, sample_rate = soxr.resample(samples, sample_rate, OPUS_RATE), OPUS_RATE
    path = _new_file(job, wanted)
    soundfile.write(path, np.clip(samples, -1.0, 1.0), sample_rate, format=form, subtype=subtype)
    return result_file(path, media_type, sample_rate=sample_rate, seconds=round(seconds, 3))


def _bytes(job: Job[Any], name: str, text: str) -> bytes:
    path = job.files.get(text)
    if path is None:
        raise BadInputError(f"{name}: there are no such bytes.")
    return Path(path).read_bytes()


def _check_size(name: str, image: Image.Image) -> None:
    width, height = image.size
    if width * height > MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise BadInputError(
            f"{name}: the picture has {width} x {height} pixels; at most {MOST_PIXELS:,}, and {MOST_SIDE:,} a side."
        )


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _check_riff(name: str, body: bytes) -> None:
    """Refuse a WAV that is shorter than it says: the library would take what is there for the whole."""
    said = int.from_bytes(body[4:8], "little") + 8
    if body.startswith(b"RIFF") and len(body) < said < STREAMED_BYTES:
        raise BadInputError(f"{name}: the recording is cut off after {len(body)} of {said} bytes.")


def _one_channel(recording: soundfile.SoundFile, sample_rate: int) -> tuple[Samples, int]:
    """Return a recording's mean channel at another rate, and how many samples of the old rate there were."""
    stream = soxr.ResampleStream(recording.samplerate, sample_rate, 1, dtype="float32")
    parts: list[Samples] = []
    read = 0
    for block in recording.blocks(BLOCK_SAMPLES, dtype="float32", always_2d=True):  # (samples, channels)
        read += len(block)
        parts.append(stream.resample_chunk(block.mean(axis=1)))
    parts.append(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
    return np.concatenate(parts), read


def _check_length(name: str, recording: soundfile.SoundFile) -> None:
    if recording.format not in AUDIO_FORMATS:
        raise BadInputError(f"{name}: {recording.format} is none of {', '.join(AUDIO_FORMATS)}.")
    least, most = SAMPLE_RATES
    if not least <= recording.samplerate <= most or recording.channels > MOST_CHANNELS:
        raise BadInputError(f"{name}: {recording.samplerate} Hz on {recording.channels} channels is out of bounds.")
    if recording.frames == 0:
        raise BadInputError(f"{name}: the recording is empty.")
    if recording.frames / recording.samplerate > MOST_SECONDS:
        raise BadInputError(f"{name}: the recording is longer than {MOST_SECONDS / 3600:g} hours.")


def _new_file(job: Job[Any], suffix: str) -> Path:
    return job.scratch / f"{job.task_id}-{secrets.token_hex(4)}.{suffix}"
