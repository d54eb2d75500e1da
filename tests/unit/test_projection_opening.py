"""What may be wrong with the file of the projections: each is recognised, and made anew or refused."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from bitinglip.errors import ProjectionFileForeign, ProjectionFileRefused
from bitinglip.events.task import TaskSubmitted
from bitinglip.projections.opening import UNUSABLE, has_no_room, is_damaged, open_database
from bitinglip.projections.writer import write_prompt
from bitinglip.settings import Projections
from tests.unit.projection_support import SETTINGS, message

TASK_ID = "01JZ0000000000000000000000"
SUBMITTED = message(TaskSubmitted.model_validate(TaskSubmitted.example), 1, about=TASK_ID)
WAL = "p.duckdb.wal"
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "p.duckdb"


@pytest.fixture
def left(path: Path) -> Path:
    """The folder of a process that was killed: a file, and a write-ahead log beside it."""
    database = open_database(path, SETTINGS)
    database.add_checkpoint("TASKS", "then")
    database.execute("checkpoint")
    write_prompt(database, "TASKS", [SUBMITTED])
    folder = path.with_name("left")
    folder.mkdir()
    for name in (path.name, WAL):
        (folder / name).write_bytes((path.parent / name).read_bytes())
    database.close()
    return folder


def tasks(path: Path, settings: Projections = SETTINGS) -> int:
    database = open_database(path, settings)
    try:
        return database.rows("select count(*) from tasks")[0][0]
    finally:
        database.close()


def test_the_write_ahead_log_of_a_killed_process_is_read(left: Path) -> None:
    assert tasks(left / "p.duckdb") == 1


@pytest.mark.parametrize("part", [0, 100, 4096, 8192, 12288, 0.5])
def test_a_file_that_was_cut_off_is_made_anew(left: Path, part: float) -> None:
    path = left / "p.duckdb"
    size = path.stat().st_size
    os.truncate(path, int(part if part >= 1 or part == 0 else part * size))
    assert tasks(path) == 0
    assert tasks(path) == 0


@pytest.mark.parametrize("place", [0, 8, 20, 4100, 8200])
def test_a_file_with_a_broken_head_is_made_anew(left: Path, place: int) -> None:
    path = left / "p.duckdb"
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xa5" * 64)
    assert tasks(path) == 0


@pytest.mark.parametrize("part", [0.0, 0.3, 0.5, 0.999])
def test_a_write_ahead_log_that_was_cut_off_loses_no_more_than_its_end(left: Path, part: float) -> None:
    os.truncate(left / WAL, int((left / WAL).stat().st_size * part))
    assert tasks(left / "p.duckdb") == 0


def test_a_broken_write_ahead_log_makes_the_file_anew(left: Path) -> None:
    with (left / WAL).open("r+b") as file:
        file.seek((left / WAL).stat().st_size // 2)
        file.write(b"\xa5" * 64)
    assert tasks(left / "p.duckdb") == 0


@pytest.mark.parametrize("content", [b"", b"x" * 100_000])
def test_a_file_that_is_no_database_is_made_anew(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert tasks(path) == 0


def test_where_the_place_was_chosen_by_hand_it_is_set_aside(path: Path) -> None:
    path.write_bytes(b"something else")
    assert tasks(path, SETTINGS.model_copy(update={"path": path})) == 0
    assert path.with_name(path.name + UNUSABLE).read_bytes() == b"something else"


def test_a_file_of_a_newer_duckdb_is_made_anew(left: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = left / "p.duckdb"
    _set(path, 12, 1_000)
    with pytest.raises(duckdb.Error, match="checksum") as told:
        duckdb.connect(path)
    found = re.search(r"computed checksum (\d+)", str(told.value))
    assert found is not None
    _set(path, 0, int(found[1]))
    assert tasks(path) == 0
    assert "storage version number 1000" in caplog.text


def _set(path: Path, place: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(struct.pack("<Q", value))


@pytest.mark.parametrize("change", ["drop table storage_format", "update storage_format set format = 99"])
def test_a_file_of_another_layout_is_made_anew(left: Path, change: str) -> None:
    path = left / "p.duckdb"
    with duckdb.connect(path) as other:
        other.execute(change)
    assert tasks(path) == 0


def test_a_database_of_something_else_is_left_alone(path: Path) -> None:
    with duckdb.connect(path) as other:
        other.execute("create table mine as select 42 as answer")
    with pytest.raises(ProjectionFileForeign):
        open_database(path, SETTINGS)
    with duckdb.connect(path) as other:
        assert other.execute("from mine").fetchall() == [(42,)]


def test_a_folder_in_its_place_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(ProjectionFileRefused, match="Is a directory"):
        open_database(path, SETTINGS)


def test_a_file_in_the_place_of_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(ProjectionFileRefused):
        open_database(tmp_path / "data" / "p.duckdb", SETTINGS)


def test_a_full_disk_is_refused_and_the_file_stays(left: Path) -> None:
    assert _in_a_child(left / "p.duckdb", "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))\nwrite()") == "refused"
    assert tasks(left / "p.duckdb") == 1


def test_a_full_disk_is_refused_before_there_is_a_file(path: Path) -> None:
    assert _in_a_child(path, "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, -1))\nopen_it()") == "refused"


@pytest.mark.skipif(os.getuid() != 0, reason="takes on another user")
def test_a_file_of_another_user_is_refused_and_stays(left: Path) -> None:
    path = left / "p.duckdb"
    path.chmod(0o600)
    assert _in_a_child(path, f"os.setgid({NOBODY})\nos.setuid({NOBODY})\nopen_it()") == "refused"
    assert tasks(path) == 1


def _in_a_child(path: Path, program: str) -> str:
    """Run a program in a process of its own; it says how it went."""
    head = f"""
import os, resource, sys
from pathlib import Path
from bitinglip.errors import ProjectionFileRefused
from bitinglip.projections.database import WriteError
from bitinglip.projections.opening import has_no_room, open_database
from tests.unit.projection_support import SETTINGS

def open_it():
    try:
        open_database(Path({str(path)!r}), SETTINGS)
    except ProjectionFileRefused:
        print("refused", flush=True)
        os._exit(0)

def write():
    open_it()
    database = open_database(Path({str(path)!r}), SETTINGS)
    try:
        database.execute("create table more as select range as n from range(100_000)")
    except WriteError as error:
        print("refused" if has_no_room(error) else error, flush=True)
        os._exit(0)

"""
    done = subprocess.run([sys.executable, "-c", head + program], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_errors_are_told_apart() -> None:
    assert is_damaged(OSError("Corrupt database file: computed checksum 1 does not match"))
    assert not is_damaged(OSError("Could not write file: No space left on device"))
    assert has_no_room(OSError("Could not write file: No space left on device"))
