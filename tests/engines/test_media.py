"""Pictures and sounds from strangers: what is sound comes through as it is, all else is refused with a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from bitinglip.workers.engine import FILE, Job
from bitinglip.workers.engines import media
from bitinglip.workers.engines.failures import BadInputError

NAME = "artifact:" + "a" * 64
RATE = 16_000


def job(folder: Path, body: bytes = b"") -> Job[Any]:
    path = folder / "input"
    path.write_bytes(body)
    return Job("T", None, files={NAME: str(path)}, scratch=folder)  # pyright: ignore[reportArgumentType]


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def read(folder: Path, body: bytes) -> Image.Image:
    return media.read_image(job(folder, body), "image", NAME)


def hear(folder: Path, body: bytes) -> media.Samples:
    return media.read_audio(job(folder, body), "audio", NAME, RATE)


def sound(samples: media.Samples, rate: int, form: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form, subtype=subtype)
    return buffer.getvalue()


def tone(hz: float, seconds: float, rate: int) -> media.Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def loudest_hz(samples: Any, rate: int) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * rate / len(samples))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


# --- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "GIF", "JPEG"])
def test_every_format_is_read(tmp_path: Path, form: str) -> None:
    image = read(tmp_path, encoded(Image.new("RGB", (20, 10), (200, 30, 40)), form))
    assert (image.mode, image.size) == ("RGB", (20, 10))
    pixel = image.getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert all(abs(is_ - was) < 8 for is_, was in zip(pixel, (200, 30, 40), strict=True))


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert read(tmp_path, encoded(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_a_picture_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    assert read(tmp_path, encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (10, 20)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"hello", "this is no picture"),
        (b"", "this is no picture"),
        (b"%PDF-1.7 %%EOF", "this is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "this is no picture"),
        (encoded(Image.effect_noise((64, 64), 50), "PNG")[:-900], "damaged or cut off"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-900], "damaged or cut off"),
        (bomb(60_000, 60_000), "is larger than"),
        (bomb(9_000, 9_000), "at most"),
        (bomb(20_000, 1), "at most"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, body: bytes, problem: str) -> None:
    with pytest.raises(BadInputError, match=problem):
        read(tmp_path, body)


def test_a_picture_bears_its_notes(tmp_path: Path) -> None:
    told = media.write_image(job(tmp_path), Image.new("RGB", (16, 8)), {"parameters": "ein Käuzchen 🦉"}, seed=7)
    assert {name: told[name] for name in ("media_type", "width", "height", "seed")} == {
        "media_type": "image/png",
        "width": 16,
        "height": 8,
        "seed": 7,
    }
    with Image.open(told[FILE]) as image:
        assert image.info["parameters"] == "ein Käuzchen 🦉"


# --- sounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", None), ("OGG", "VORBIS"), ("MP3", None)])
def test_a_recording_is_brought_to_one_channel_at_the_wanted_rate(
    tmp_path: Path, form: str, subtype: str | None
) -> None:
    left, right = tone(440, 1.0, 44_100), tone(440, 1.0, 44_100) * 0.5
    samples = hear(tmp_path, sound(np.stack([left, right], axis=1), 44_100, form, subtype))
    assert samples.dtype == np.float32
    assert abs(len(samples) - RATE) < RATE * 0.1  # MP3 pads
    assert abs(loudest_hz(samples, RATE) - 440) < 3
    assert 0.3 < float(np.abs(samples).max()) < 0.45


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"hello", "no recording"),
        (b"", "no recording"),
        (sound(np.zeros(0, dtype=np.float32), RATE), "empty"),
        (sound(tone(440, 0.1, 500), 500), "out of bounds"),
        (sound(np.array([0.0, np.nan, 1.0], dtype=np.float32), RATE, "WAV", "FLOAT"), "no numbers"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, body: bytes, problem: str) -> None:
    with pytest.raises(BadInputError, match=problem):
        hear(tmp_path, body)


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG"])
def test_a_recording_that_is_cut_off_is_refused(tmp_path: Path, form: str) -> None:
    body = sound(tone(440, 3.0, RATE), RATE, form)
    with pytest.raises(BadInputError):
        hear(tmp_path, body[: len(body) // 2])


@pytest.mark.parametrize("wanted", ["wav", "flac", "opus"])
def test_a_sound_is_written_as_wanted(tmp_path: Path, wanted: str) -> None:
    told = media.write_sound(job(tmp_path), tone(440, 0.5, 22_050), 22_050, wanted)
    samples, rate = soundfile.read(told[FILE], dtype="float32")
    assert rate == told["sample_rate"]
    assert told["seconds"] == 0.5
    assert abs(len(samples) / rate - 0.5) < 0.05
    assert abs(loudest_hz(samples, rate) - 440) < 5


def test_what_is_too_loud_is_clipped_not_wrapped(tmp_path: Path) -> None:
    told = media.write_sound(job(tmp_path), tone(440, 0.1, RATE) * 10, RATE, "wav")
    samples, _ = soundfile.read(told[FILE], dtype="float32")
    assert np.corrcoef(np.sign(samples), np.sign(tone(440, 0.1, RATE)))[0, 1] > 0.99


def test_a_recording_is_cut_where_it_is_quiet() -> None:
    rate = 1000
    samples = np.sin(np.arange(10 * rate)).astype(np.float32)
    samples[3_700:3_800] = 0.0
    assert 3_700 <= media.quiet_end(samples, 0, 4 * rate, rate) <= 3_800
    assert 3_700 <= media.quiet_end(samples, 500, 4 * rate, rate) <= 4_500
    assert media.quiet_end(samples, 6 * rate, 4 * rate, rate) == len(samples)
