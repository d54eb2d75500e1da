"""A file that is filled in bulk, without keys until it is full, comes to the same rows as one that is kept up."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage
from bitinglip.events.task import TaskSubmitted
from bitinglip.projections import sql
from bitinglip.projections.opening import create_bulk, open_database
from bitinglip.projections.writer import write
from tests.unit.projection_support import SETTINGS, STREAM, cut, dump, message, stories, table_of

SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ID = "01JZ0000000000000000000000"


def filled(path: Path, batches: Seq[Seq[RawMessage]]) -> None:
    """Fill a new file."""
    database = create_bulk(path, SETTINGS)
    for stream in sql.STREAMS:
        database.add_checkpoint(stream, "then")
    for batch in batches:
        write(database, STREAM, batch)
    database.fold(threads=1)
    database.close()


def filled_tables(batches: Seq[Seq[RawMessage]]) -> dict[str, list[tuple[Any, ...]]]:
    """Return all tables of a file that was filled with these batches."""
    with tempfile.TemporaryDirectory() as folder:
        filled(Path(folder) / "bulk.duckdb", batches)
        database = open_database(Path(folder) / "bulk.duckdb", SETTINGS)
        try:
            return dump(database)
        finally:
            database.close()


@SLOW
@given(st.data())
def test_bulk_and_live_come_to_the_same(data: st.DataObject) -> None:
    story = data.draw(stories())
    assert filled_tables(data.draw(cut(story))) == table_of(data.draw(cut(story)))


def test_a_second_submission_of_a_task_changes_nothing_in_bulk_either() -> None:
    first = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID, "kind": "echo"})
    second = first.model_copy(update={"kind": "other", "retry_of": "01JZ0000000000000000000001"})
    batches = [[message(first, 1, about=ID)], [message(second, 2, about=ID)]]
    tables = filled_tables(batches)
    assert tables == table_of(batches)
    assert [row[2] for row in tables["tasks"]] == ["echo"]


def test_a_full_file_has_its_keys(tmp_path: Path) -> None:
    event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID})
    filled(tmp_path / "bulk.duckdb", [[message(event, 1, about=ID)]])
    database = open_database(tmp_path / "bulk.duckdb", SETTINGS)
    home = next(version.home for version in database.applied_to if version.name == "tasks")
    with pytest.raises(duckdb.ConstraintException):
        database.execute(f"insert into {home}.tasks from {home}.tasks")
    database.close()


def test_what_does_not_fit_into_memory_goes_beside_the_file(tmp_path: Path) -> None:
    database = create_bulk(tmp_path / "bulk.duckdb", SETTINGS)
    told = database.rows("select current_setting('temp_directory')")
    database.close()
    assert told == [(str(tmp_path / "bulk.duckdb.tmp"),)]
