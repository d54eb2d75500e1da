"""A file that is filled in bulk, without keys until it is full, comes to the same rows as one that is kept up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.task import TaskAssigned, TaskSubmitted
from bitinglip.projections import sql
from bitinglip.projections.ahead import Ahead
from bitinglip.projections.batch import to_arrow
from bitinglip.projections.opening import create_bulk, open_database
from bitinglip.projections.writer import write_prompt, write_trailing
from tests.unit.projection_support import SETTINGS, STREAM, cut, dump, fresh_database, message, stories, table_of

SLOW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ID = "01JZ0000000000000000000000"
SUBMITTED = message(TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID}), 1, about=ID)
ASSIGNED = message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID}), 9, about=ID)


def filled(path: Path, batches: Seq[Seq[RawMessage]]) -> None:
    """Fill a new file as a projector does that takes the events of a batch apart while it applies the one before."""

    async def fill() -> None:
        database = create_bulk(path, SETTINGS)
        for stream in sql.STREAMS:
            database.add_checkpoint(stream, "then")
        ahead = Ahead(database)
        for batch in filter(None, batches):
            staged = await ahead.take_apart(STREAM, [Messages.of(batch)])
            write_prompt(database, STREAM, batch, staged=staged)
            write_trailing(database, STREAM, batch)
        await ahead.close()
        database.fold(threads=1)
        database.close()

    asyncio.run(fill())


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


@pytest.mark.parametrize("bad", [b"{", b"\xff\xfe", SUBMITTED.payload.replace(b"2026-01-01T", b"2026-99-01T")])
def test_an_event_that_cannot_be_taken_apart_is_marked_and_the_others_are_applied(bad: bytes) -> None:
    batch = [SUBMITTED, SUBMITTED._replace(sequence=5, payload=bad), ASSIGNED]
    tables = filled_tables([batch])
    assert tables == table_of([batch])
    assert [row[1] for row in tables["tasks"]] == ["running"]


def test_of_events_that_are_applied_in_part_none_is_applied_again(tmp_path: Path) -> None:
    with fresh_database() as database:
        staged = database.cursor().take_apart(STREAM, to_arrow([[SUBMITTED, ASSIGNED]]), database.stagings(STREAM))
        write_prompt(database, STREAM, [SUBMITTED])
        write_prompt(database, STREAM, [SUBMITTED, ASSIGNED], staged=staged)  # as after a write that failed half-way
        write_trailing(database, STREAM, [SUBMITTED, ASSIGNED])
        assert dump(database) == table_of([[SUBMITTED], [ASSIGNED]])


@pytest.mark.parametrize("how", ["create_bulk", "open_database"])
def test_times_are_utc_for_every_cursor_wherever_the_machine_stands(how: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom bitinglip.projections import opening\n"
        "from bitinglip.settings import Projections\n"
        f"database = opening.{how}(Path(sys.argv[1]), Projections())\n"
        "print(database.cursor().rows('select ?::timestamptz::timestamp::varchar', ['2026-05-01T02:00:00+02:00']))"
    )
    told = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "x.duckdb"],
        env={**os.environ, "TZ": "America/New_York"}, stdout=subprocess.PIPE, check=True,
    )  # fmt: skip
    assert told.stdout.decode().strip() == "[('2026-05-01 00:00:00',)]"


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
