"""Statements that are planned once, and the Arrow tables that they read and make."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from bitinglip.projections.database import Database
from bitinglip.projections.prepared import Prepared

STEPS = """
create or replace temp table doubled as
select number * 2 as number, $who::varchar as who from incoming;

-- What comes of it.
insert into kept select number, who from doubled;
"""


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("create table kept (number integer, who varchar)")
        yield connection


@pytest.fixture
def prepared(connection: duckdb.DuckDBPyConnection) -> Prepared:
    return Prepared(connection)


def numbers(*those: int) -> pa.Table:
    return pa.table({"number": pa.array(those, pa.int32())})


def kept(connection: duckdb.DuckDBPyConnection) -> list[tuple[int, str]]:
    return connection.execute("select number, who from kept order by all").fetchall()


def test_each_time_the_rows_of_that_time_are_read(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    for each in (numbers(1, 2), numbers(), numbers(3)):
        prepared.offer("incoming", each)
        prepared.run(STEPS, {"who": "a"})
        prepared.let_go()
    assert kept(connection) == [(2, "a"), (4, "a"), (6, "a")]


def test_what_is_made_is_no_table(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    prepared.offer("incoming", numbers(1))
    prepared.run(STEPS, {"who": "a"})
    assert connection.execute("select table_name from duckdb_tables() where temporary").fetchall() == []


def test_a_statement_is_planned_once(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    for number in range(5):
        prepared.offer("incoming", numbers(number))
        prepared.run(STEPS, {"who": "a"})
    assert len(connection.execute("from duckdb_prepared_statements()").fetchall()) == 2


def test_other_columns_are_planned_for_anew(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    texts = pa.table({"who": ["x"], "number": pa.array([5], pa.int64())})
    for each in (numbers(1), texts, numbers(2), texts):
        prepared.offer("incoming", each)
        prepared.run(STEPS, {"who": "a"})
        prepared.let_go()
    assert kept(connection) == [(2, "a"), (4, "a"), (10, "a"), (10, "a")]
    assert len(connection.execute("from duckdb_prepared_statements()").fetchall()) <= 2  # the others are dropped


def test_the_last_statement_has_the_answer(prepared: Prepared) -> None:
    prepared.offer("incoming", numbers(1, 2, 3))
    assert prepared.run("select sum(number) from incoming").fetchall() == [(6,)]


def test_a_text_is_given_as_it_is(connection: duckdb.DuckDBPyConnection, prepared: Prepared) -> None:
    prepared.offer("incoming", numbers(1))
    prepared.run(STEPS, {"who": "it's'; drop table kept; --"})
    assert kept(connection) == [(2, "it's'; drop table kept; --")]


def test_names_that_were_given_in_a_transaction_that_is_undone_are_given_again(
    connection: duckdb.DuckDBPyConnection, prepared: Prepared
) -> None:
    for _ in range(2):
        connection.execute("begin transaction")
        prepared.offer("incoming", numbers(1))
        prepared.run(STEPS, {"who": "undone"})
        connection.execute("rollback")
        prepared.rolled_back()
    prepared.offer("incoming", numbers(7))
    prepared.run(STEPS, {"who": "a"})
    assert kept(connection) == [(14, "a")]


def write(
    database: Database, number: int, who: str, taking: int | None = None, before_commit: Callable[[], Any] = int
) -> None:
    """Write a number by what is prepared, and take another one, in one transaction."""
    with database.transaction():
        database.gather("select $number::integer as number", {"number": number})
        database.run_again("create or replace temp table doubled as select number * 2 as number from incoming;")
        database.run_again(f"insert into kept select number, '{who}' from doubled;")
        if taking is not None:
            database.execute("insert into taken values ($number)", {"number": taking})
        before_commit()


def test_names_that_were_given_in_a_transaction_that_cannot_be_committed_are_given_again(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    connection.execute("create table taken (number integer primary key)")
    database, other = Database(connection), connection.cursor()
    for number in range(2):
        other.execute("begin transaction")
        other.execute(f"insert into taken values ({number})")
        with pytest.raises(duckdb.Error, match="commit"):
            write(database, number, "undone", taking=number, before_commit=other.commit)
    write(database, 7, "a")  # a statement that is planned now
    assert kept(connection) == [(14, "a")]
    other.close()


def test_rows_that_were_let_go_are_read_by_nobody(prepared: Prepared) -> None:
    prepared.offer("incoming", numbers(1))
    prepared.run("select number from incoming").fetchall()
    prepared.let_go()
    with pytest.raises(duckdb.Error, match="__arrow_c_stream__"):
        prepared.run("select number from incoming").fetchall()
