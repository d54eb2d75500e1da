"""A process killed while it applies leaves a file that is consistent, and can go on from it.

What trails has checkpoints of its own: a kill between its transaction and that of the others leaves it behind.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.histories import history
from bitinglip.projections import sql
from bitinglip.projections.database import Database
from bitinglip.projections.opening import open_database
from bitinglip.projections.writer import write, write_trailing
from tests.integration.projections.applying import EVENTS
from tests.unit.projection_support import SETTINGS, dump, table_of

KILLS = (3, 9, 20)
TRAILS_SELDOM = "4"
"""What trails is written with every fourth batch."""


def _apply_and_kill(path: Path, lines: int, *more: str) -> int:
    """Let a process apply until it has told of so many new batches, then kill it; return what it told last."""
    command = [sys.executable, "-m", "tests.integration.projections.applying", str(path), *more]
    told = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in islice(process.stdout, lines):
            told = int(line)
        process.kill()
    assert process.returncode == -9
    return told


def _applied(database: Database) -> tuple[int, int]:
    """Return up to where all else is applied, and what trails."""
    (behind,) = {build.checkpoints()["TASKS"][0] for build in database.trailing}
    return database.checkpoints()["TASKS"][0], behind


def _assert_consistent(found: dict[str, list[Any]], sequence: int, trailing: int) -> None:
    late = [name for projection in sql.CATALOGUE.values() if projection.trails for name in projection.tables]
    assert late
    assert set(late) <= set(found)
    expected = table_of([list(history(sequence))])
    expected |= {name: rows for name, rows in table_of([list(history(trailing))]).items() if name in late}
    assert found == expected


def test_killed_at_any_moment_the_file_is_consistent(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    for lines in KILLS:
        told = _apply_and_kill(path, lines)
        database = open_database(path, SETTINGS)
        sequence, trailing = _applied(database)
        found = dump(database)
        database.close()
        assert told <= trailing <= sequence < EVENTS
        _assert_consistent(found, sequence, trailing)


def test_killed_before_what_trails_was_written_it_goes_on_from_there(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    told = _apply_and_kill(path, 6, TRAILS_SELDOM)
    database = open_database(path, SETTINGS)
    sequence, trailing = _applied(database)
    found = dump(database)
    _assert_consistent(found, sequence, trailing)
    assert trailing < told <= sequence
    write_trailing(database, "TASKS", list(history(sequence)))
    found = dump(database)
    database.close()
    assert found == table_of([list(history(sequence))])


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    path, events = tmp_path / "p.duckdb", 6_000
    _apply_and_kill(path, 5)
    database = open_database(path, SETTINGS)
    write(database, "TASKS", list(history(events)))
    found = dump(database)
    database.close()
    assert found == table_of([list(history(events))])
