"""Versions of projections in one file: made live, in the background or as a whole they have the same rows."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bitinglip.events.model
import bitinglip.events.node
import bitinglip.events.worker  # noqa: F401  (each declares its types)
from bitinglip.events.envelope import RawMessage
from bitinglip.events.registry import REGISTRY
from bitinglip.projections import sql, versions
from bitinglip.projections.database import Database
from bitinglip.projections.opening import create_bulk, open_database
from bitinglip.projections.pruning import EPOCH
from bitinglip.projections.sql import Catalogue, Projection
from bitinglip.projections.writer import write
from tests.unit.projection_support import SETTINGS, START, cut, dump, fresh_database, message, stories

STREAM_OF = {"worker": "WORKERS", "node": "WORKERS", "model": "MODELS"}
Log = list[tuple[str, Seq[RawMessage]]]
"""Batches of events, each with its stream."""


@st.composite
def logs(draw: Any) -> tuple[Log, Log]:
    """Draw a log of all streams, cut into batches in two ways."""
    kinds = sorted(kind for kind in REGISTRY if kind.partition(".")[0] in STREAM_OF)
    said = draw(st.lists(st.sampled_from(kinds), max_size=12))
    messages: dict[str, list[RawMessage]] = {"TASKS": draw(stories()), "WORKERS": [], "MODELS": []}
    for number, kind in enumerate(said, 1):
        event = REGISTRY[kind].model_validate(REGISTRY[kind].example)
        about = draw(st.sampled_from(["one", "other"]))
        messages[STREAM_OF[kind.partition(".")[0]]].append(message(event, number, about=about))
    once, again = (
        [(stream, batch) for stream, told in messages.items() for batch in draw(cut(told))] for _ in range(2)
    )
    return once, again


def fill(database: Database, log: Log) -> None:
    for stream, batch in log:
        write(database, stream, batch)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), st.sets(st.sampled_from(sql.NAMES), min_size=1), st.integers(0, 8))
def test_made_in_the_background_it_has_the_same_rows(both: tuple[Log, Log], names: set[str], stop: int) -> None:
    once, again = both
    with fresh_database() as database:
        fill(database, once)
        live = dump(database)
        with database.transaction():
            made = [versions.add(database, sql.CATALOGUE[name], serving=False) for name in sorted(names)]
        for part in (again[:stop], again):  # it goes on where it was
            build = database.build(made)
            fill(build, [(stream, batch) for stream, batch in part if stream in build.streams])
            build.close()
        versions.take_over(database, made)
        database.serve(versions.served(versions.read(database)))
        assert dump(database) == live


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(logs())
def test_made_as_a_whole_it_has_the_same_rows(tmp_path_factory: pytest.TempPathFactory, both: tuple[Log, Log]) -> None:
    once, again = both
    with fresh_database() as database:
        fill(database, once)
        live = dump(database)
    bulk = create_bulk(tmp_path_factory.mktemp("bulk") / "p.duckdb", SETTINGS)
    for stream in sql.STREAMS:
        bulk.add_checkpoint(stream, "then")
    fill(bulk, again)
    assert dump(bulk) == live
    bulk.close()


# --- what is asked ----------------------------------------------------------------------------------------------------


def things(columns: str, values: str, comment: str = "A thing.", name: str = "things") -> Catalogue:
    """Return a catalogue of one projection, of a row per event."""
    text = f"""-- streams: TASKS
-- name: table
create table self.{name} ({columns});
comment on table self.{name} is 'Things.';
comment on column self.{name}.id is '{comment}';
-- name: apply
insert into self.{name} select {values} from batch;
"""
    return sql.catalogue({"batch": sql.texts()["batch"], "things": text})


OLD = things("id varchar, n integer", "id, 1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    database = open_database(tmp_path / "p.duckdb", SETTINGS, OLD)
    database.add_checkpoint("TASKS", "then")
    write(database, "TASKS", [an_event(1)])
    database.close()
    return tmp_path / "p.duckdb"


def an_event(sequence: int) -> RawMessage:
    return message(REGISTRY["task.cancelled"].model_validate(REGISTRY["task.cancelled"].example), sequence, about="t")


def opened(path: Path, catalogue: Catalogue) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """Return the rows that are asked, and the columns, with types and comments, after one more event."""
    database = open_database(path, SETTINGS, catalogue)
    try:
        write(database, "TASKS", [an_event(2)])
        columns = [row[1:] for row in database.rows(sql.blocks("system")["columns"]) if row[0] == "main"]
        return database.rows("from things order by all"), [row[1:] for row in columns if row[0] == "things"]
    finally:
        database.close()


def test_a_column_that_the_old_version_lacks_is_null(path: Path) -> None:
    rows, columns = opened(path, things("id varchar, extra double, n integer", "id, 2.5, 1", "Told anew."))
    assert rows == [("E1", None, 1), ("E2", None, 1)]
    assert columns == [("id", "VARCHAR", "Told anew."), ("extra", "DOUBLE", None), ("n", "INTEGER", None)]


def test_a_column_of_another_type_is_cast_and_one_that_is_no_more_is_not_shown(path: Path) -> None:
    rows, columns = opened(path, things("id varchar primary key", "id"))
    assert (rows, [column[0] for column in columns]) == ([("E1",), ("E2",)], ["id"])
    assert opened(path, things("id varchar, n varchar", "id, 'one'"))[0] == [("E1", "1"), ("E2", "1")]
    assert opened(path, things("id integer, n varchar", "1, 'one'"))[0] == [(None, "1"), (None, "1")]


def test_going_back_to_the_old_version_shows_it_as_it_was(path: Path) -> None:
    opened(path, things("id varchar, extra double", "id, 2.5"))
    rows, columns = opened(path, OLD)
    assert rows == [("E1", 1), ("E2", 1)]
    assert columns == [("id", "VARCHAR", "A thing."), ("n", "INTEGER", None)]
    database = open_database(path, SETTINGS, OLD)
    assert [version.serving for version in versions.read(database)] == [True]
    database.close()


def test_what_was_begun_of_a_version_that_is_wanted_no_more_is_dropped(path: Path) -> None:
    for comment in ("second", "third"):
        opened(path, things("id varchar", "id", comment))
    database = open_database(path, SETTINGS, OLD)
    schemas = {row[0] for row in database.rows("select distinct schema_name from duckdb_tables()")}
    assert schemas == {"main", versions.read(database)[0].home}
    database.close()


def test_a_projection_whose_table_has_another_name_takes_over(path: Path) -> None:
    renamed = things("id varchar", "id", name="items")
    database = open_database(path, SETTINGS, renamed)
    (made,) = [version for version in versions.read(database) if not version.serving]
    build = database.build([made])
    write(build, "TASKS", [an_event(1)])
    build.close()
    versions.take_over(database, [made])
    assert database.rows("from items") == [("E1",)]
    shown = "select view_name from duckdb_views() where schema_name = 'main' and not internal and not temporary"
    assert database.rows(shown) == [("items",)]
    database.close()


# --- blocks -----------------------------------------------------------------------------------------------------------

BLOCKS = Projection(
    "things",
    """-- streams: TASKS WORKERS
-- name: table
create table self.things (id varchar);
-- name: always
1;
-- name: some
-- when: task.queued batch.*
2;
-- name: lonely
-- alone: task.progressed task.cancel*
3;
-- name: prune
4;
""",
    "",
)


@pytest.mark.parametrize(
    ("types", "steps"),
    [
        ({"task.submitted"}, "1"),
        ({"task.submitted", "task.queued"}, "12"),
        ({"batch.opened"}, "12"),
        ({"task.progressed"}, "3"),
        ({"task.progressed", "task.cancelled"}, "3"),
        ({"task.progressed", "task.queued"}, "12"),
        ({None}, "1"),
        (set[str](), "1"),
    ],
)
def test_blocks_are_applied_as_their_conditions_say(types: set[str | None], steps: str) -> None:
    assert "".join(line[0] for line in BLOCKS.applied(types, "s").splitlines() if line[:1].isdigit()) == steps


def test_a_version_is_a_digest_of_all_that_makes_its_rows() -> None:
    texts = sql.texts()
    other = sql.catalogue(texts | {"batch": texts["batch"] + "\n"})
    assert all(other[name].version != sql.CATALOGUE[name].version for name in sql.NAMES)
    assert BLOCKS.streams == ("TASKS", "WORKERS")


@pytest.mark.parametrize("name", sql.NAMES)
def test_each_file_has_its_streams_and_its_table(name: str) -> None:
    projection = sql.CATALOGUE[name]
    assert projection.streams
    assert "create table somewhere." in projection.table("somewhere")
    assert "self." not in projection.all_applied("somewhere")


# --- pruning ----------------------------------------------------------------------------------------------------------


def test_ticks_leave_the_events_after_their_time_and_nothing_else_does() -> None:
    told = ["task.submitted", "task.progressed", "task.assigned", "task.progressed", "task.progressed"]
    messages = [
        message(REGISTRY[kind].model_validate(REGISTRY[kind].example), number * 60_000, about="t")
        for number, kind in enumerate(told, 1)
    ]
    with fresh_database() as database:
        write(database, "TASKS", messages)
        (events,) = [version for version in database.applied_to if version.name == "events"]
        block = events.projection.prune(events.home)
        assert block is not None
        ticks = [kind for kind, cls in REGISTRY.items() if not cls.lasting]
        start = START.replace(tzinfo=None)
        params = {"now": start + timedelta(hours=1), "before": start + timedelta(minutes=4.5), "ticks": ticks}

        def left() -> list[int]:
            return [number // 60_000 for (number,) in database.rows("select sequence from events order by sequence")]

        database.run(block, params | {"since": start + timedelta(minutes=3)})
        assert left() == [1, 2, 3, 5]
        database.run(block, params | {"since": EPOCH})
        assert left() == [1, 3, 5]
