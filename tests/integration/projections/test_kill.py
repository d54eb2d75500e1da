"""A process killed while it applies leaves a file that is consistent, and can go on from it."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path

from benchmarks.histories import history
from bitinglip.projections.opening import open_database
from bitinglip.projections.writer import write
from tests.integration.projections.applying import EVENTS
from tests.unit.projection_support import SETTINGS, dump, table_of

KILLS = (3, 9, 20)


def _apply_and_kill(path: Path, lines: int) -> int:
    """Let a process apply until it has told of so many new batches, then kill it; return what it told last."""
    command = [sys.executable, "-m", "tests.integration.projections.applying", str(path)]
    told = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in islice(process.stdout, lines):
            told = int(line)
        process.kill()
    assert process.returncode == -9
    return told


def test_killed_at_any_moment_the_file_is_consistent(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    for lines in KILLS:
        told = _apply_and_kill(path, lines)
        database = open_database(path, SETTINGS)
        sequence = database.checkpoints()["TASKS"][0]
        found = dump(database)
        database.close()
        assert told <= sequence < EVENTS
        assert found == table_of([list(history(sequence))])


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path, events = tmp_path / "p.duckdb", 6_000
    _apply_and_kill(path, 5)
    database = open_database(path, SETTINGS)
    write(database, "TASKS", list(history(events)))
    found = dump(database)
    database.close()
    assert found == table_of([list(history(events))])
