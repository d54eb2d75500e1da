"""The files of running tasks, on a real disk and in a real object store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from bitinglip.events import artifacts
from bitinglip.events.log import EventLog
from bitinglip.workers.engine import result_file
from bitinglip.workers.files import Files


@pytest.fixture
async def files(log: EventLog, tmp_path: Path) -> Files:
    """An empty folder of files."""
    files = Files(log.connection, tmp_path / "files", lambda: False)
    await files.clear()
    return files


async def test_files_are_stored_wherever_they_stand_in_a_result(files: Files, log: EventLog) -> None:
    made = {name: files.folder / name for name in ("a", "b", "c")}
    for name, path in made.items():
        path.write_text(name)
    result = {
        "images": [result_file(made["a"], "image/png", seed=1), {"deep": [[result_file(made["b"], "image/png")]]}],
        "sound": result_file(made["c"], "audio/wav"),
        "numbers": [[1.0, 2.0]],
        "nothing": None,
    }
    stored = await files.store(result)
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in made}
    assert stored == {
        "images": [
            {"sha256": digests["a"], "size_bytes": 1, "media_type": "image/png", "seed": 1},
            {"deep": [[{"sha256": digests["b"], "size_bytes": 1, "media_type": "image/png"}]]},
        ],
        "sound": {"sha256": digests["c"], "size_bytes": 1, "media_type": "audio/wav"},
        "numbers": [[1.0, 2.0]],
        "nothing": None,
    }
    for name, digest in digests.items():
        assert (await artifacts.get(log.connection, digest))[0] == name.encode()


async def test_a_result_without_files_is_left_as_it_is(files: Files) -> None:
    result = {"embeddings": [[0.5, 1], []], "dimensions": 2, "text": "x", "more": [{"logprobs": [None, -1.5]}]}
    assert await files.store(result) is result


async def test_tidying_removes_what_is_there_and_keeps_the_folder(files: Files) -> None:
    (files.folder / "part").mkdir()
    (files.folder / "part" / "x").write_text("x")
    await files.tidy()
    assert list(files.folder.iterdir()) == []
    before = files.folder.stat().st_mtime_ns
    await files.tidy()
    assert files.folder.stat().st_mtime_ns == before
    files.folder.rmdir()
    await files.tidy()
    assert files.folder.stat().st_mode & 0o777 == 0o700
