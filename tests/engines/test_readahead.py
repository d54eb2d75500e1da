"""What of a model's files is in the page cache before anybody reads it."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from bitinglip.models.memory import weight_files
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.engines import readahead
from bitinglip.workers.engines.readahead import read_ahead

PAGE = mmap.PAGESIZE
WEIGHTS_PAGES = 1024


@pytest.fixture
def cold(tmp_path: Path, story: ModelSpec) -> Path:
    """A model's folder of which no page is in memory, and with more beside it than is loaded."""
    folder = shutil.copytree(Path(story.path or ""), tmp_path / "model")
    (folder / "model.safetensors").write_bytes(os.urandom(WEIGHTS_PAGES * PAGE))
    (folder / "model.fp16.safetensors").write_bytes(os.urandom(readahead.SMALL_BYTES + PAGE))
    (folder / ".git").mkdir()
    (folder / ".git" / "pack").write_bytes(bytes(PAGE))
    files = [file for file in folder.rglob("*") if file.is_file()]
    forget(files)
    if any(map(resident, files)):
        pytest.skip("this file system keeps its pages in memory")  # skip-ok: tmpfs has no other place for them
    return folder


def forget(files: Iterable[Path]) -> None:
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def resident(file: Path) -> int:
    """Count a file's pages in the page cache, without bringing any there."""
    size = file.stat().st_size
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | 2) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // PAGE))()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(size), pages)
        del view
    assert failed == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in pages)


def wait_for(file: Path, pages: int) -> None:
    until = time.monotonic() + 10
    while resident(file) < pages:
        assert time.monotonic() < until, f"{resident(file)} of {pages} pages of {file.name}"
        time.sleep(0.01)  # sleep-ok: the disk tells nobody


def test_what_will_be_loaded_is_in_memory_soon_and_nothing_else(cold: Path) -> None:
    read_ahead([cold]).join()
    assert weight_files(cold) == [cold / "model.safetensors"]
    for file in (cold / "model.safetensors", cold / "config.json", cold / "tokenizer.json"):
        wait_for(file, -(-file.stat().st_size // PAGE))
    assert resident(cold / "model.fp16.safetensors") == resident(cold / ".git" / "pack") == 0


def test_no_more_than_half_of_the_memory_is_filled(cold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = sum(file.stat().st_size for file in cold.iterdir() if file.is_file() and file.suffix != ".safetensors")
    free = 2 * (small + 4 * PAGE)
    memory = psutil.virtual_memory()._replace(available=free)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    read_ahead([cold]).join()
    wait_for(cold / "model.safetensors", 4)
    assert resident(cold / "model.safetensors") < WEIGHTS_PAGES


def test_a_file_that_is_gone_meanwhile_is_left_to_the_load(
    cold: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(readahead, "weight_files", lambda folder: [folder / "gone.safetensors"])
    with caplog.at_level(logging.INFO, readahead.__name__):
        read_ahead([cold]).join()
    assert "not read ahead" in caplog.text
    assert "gone.safetensors" in caplog.text


def test_what_another_server_has_loaded_is_not_read() -> None:
    spec = ModelSpec(kind="text-generation", reference="a/b", path="/models/a", parts={"vocoder": "/models/v"})
    assert spec.folders == [Path("/models/a"), Path("/models/v")]
    assert spec.model_copy(update={"vllm": "start"}).folders == spec.folders
    assert spec.model_copy(update={"vllm": "http://127.0.0.1:8000"}).folders == []
    assert spec.model_copy(update={"path": None}).folders == []
