"""The file: its versions, its damage, its lock, its comments."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bitinglip.errors import InvalidConfig, ProjectionFileBusy
from bitinglip.events.task import TaskSubmitted
from bitinglip.projections import sql, versions
from bitinglip.projections.opening import open_database
from bitinglip.projections.rows import ModelAliasRow, ModelNodeRow, ModelRow, TaskRow, WorkerRow
from bitinglip.projections.writer import write
from tests.unit.projection_support import SETTINGS, message

SUBMITTED = message(TaskSubmitted.model_validate(TaskSubmitted.example), 3, about="01JZ0000000000000000000000")


def _fill(path: Path) -> None:
    database = open_database(path, SETTINGS)
    database.add_checkpoint("TASKS", "then")
    write(database, "TASKS", [SUBMITTED])
    database.close()


def _count(path: Path) -> int:
    database = open_database(path, SETTINGS)
    try:
        return database.rows("select count(*) from tasks")[0][0]
    finally:
        database.close()


def test_a_file_is_kept(tmp_path: Path) -> None:
    _fill(tmp_path / "deep" / "p.duckdb")
    assert _count(tmp_path / "deep" / "p.duckdb") == 1


def test_changed_sql_leaves_the_old_rows_until_the_new_ones_are_made(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    _fill(path)
    changed = sql.catalogue(sql.texts() | {"tasks": sql.texts()["tasks"] + "-- changed"})
    database = open_database(path, SETTINGS, changed)
    here = [version for version in versions.read(database) if version.name == "tasks"]
    states = {(version.serving, version.projection == changed["tasks"]) for version in here}
    assert states == {(True, False), (False, True)}
    assert database.rows("select count(*) from tasks") == [(1,)]
    database.close()


def test_a_file_of_another_process_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.duckdb"
    _fill(path)
    program = f"import duckdb; held = duckdb.connect({str(path)!r}); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ProjectionFileBusy, match="in use by another process"):
            open_database(path, SETTINGS)
        other.communicate(b"\n")
    assert _count(path) == 1


def test_a_setting_that_duckdb_refuses_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="Memory"):
        open_database(tmp_path / "p.duckdb", SETTINGS.model_copy(update={"memory_limit": "much"}))


@pytest.mark.parametrize(
    ("table", "row"),
    [
        ("tasks", TaskRow),
        ("workers", WorkerRow),
        ("models", ModelRow),
        ("model_nodes", ModelNodeRow),
        ("model_aliases", ModelAliasRow),
    ],
)
def test_rows_have_the_columns_of_their_table(tmp_path: Path, table: str, row: type) -> None:
    database = open_database(tmp_path / "p.duckdb", SETTINGS)
    columns = [found[2] for found in database.rows(sql.blocks("system")["schema"]) if found[0] == table]
    database.close()
    assert [field.name for field in fields(row)] == [column for column in columns if column != "state_key"]


def test_every_column_has_a_comment(tmp_path: Path) -> None:
    database = open_database(tmp_path / "p.duckdb", SETTINGS)
    rows = database.rows(sql.blocks("system")["schema"])
    database.close()
    bookkeeping = re.findall(r"^create table (?:if not exists )?(\w+)", sql.texts()[sql.SYSTEM], re.M)
    made = {name for each in sql.CATALOGUE.values() for name in re.findall(r"^create \w+ self\.(\w+)", each.text, re.M)}
    assert {row[0] for row in rows} == {*made, *bookkeeping}
    assert made >= {*sql.NAMES, "queues", "usage", "latency", "latency_quantiles", "errors"}
    assert [row for row in rows if not row[1] or not row[4]] == []
