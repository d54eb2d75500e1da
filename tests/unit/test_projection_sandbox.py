"""A stranger's SQL: what it may ask, and all that it may not do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from bitinglip.errors import QueriesBusy, QueryRefused, QueryTimeout
from bitinglip.events.task import TaskSubmitted
from bitinglip.projections import sandbox as module
from bitinglip.projections.opening import open_database
from bitinglip.projections.query import CursorPool
from bitinglip.projections.sandbox import Sandbox
from bitinglip.projections.writer import write
from tests.unit.projection_support import SETTINGS, message

ID = "01JZ0000000000000000000000"


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    database = open_database(tmp_path / "p.duckdb", SETTINGS)
    database.add_checkpoint("TASKS", "then")
    write(database, "TASKS", [message(TaskSubmitted.model_validate(TaskSubmitted.example), 1, about=ID)])
    pool = CursorPool(database, "sandbox", module.THREADS)
    before = database.rows("select count(*), max(last_sequence) from tasks")
    yield Sandbox(pool.run)
    assert database.rows("select count(*), max(last_sequence) from tasks") == before
    await pool.close()
    database.close()


@pytest.mark.parametrize(
    ("sql", "params", "rows"),
    [
        ("select task_id, state from tasks", [], [[ID, "queued"]]),
        ("select ?::int + 1", [4], [[5]]),
        ("select $a as a, $b as b", {"a": "x", "b": None}, [["x", None]]),
        ("from tasks select count(*)", [], [[1]]),
        ("with a as (select 1 x) select * from a -- a comment", [], [[1]]),
        ("select 1;", [], [[1]]),
        ("values (1, 'a'), (2, 'b')", [], [[1, "a"], [2, "b"]]),
        ("select sum(i) from range(10) r(i)", [], [[45]]),
        ("select (data ->> '$.retry.max_attempts')::int from events", [], [[3]]),
        ("select column_name from (describe tasks) limit 1", [], [["task_id"]]),
        ("select submitted_at from tasks", [], [["2026-01-01T00:00:00.001000Z"]]),
        ("select unnest([1, 2]) u order by u desc", [], [[2], [1]]),
    ],
)
async def test_questions_are_answered(sandbox: Sandbox, sql: str, params: object, rows: list[object]) -> None:
    table = await sandbox.run(sql, params, 10, 100)  # type: ignore[arg-type]
    assert (table.rows, table.truncated) == (rows, False)


async def test_every_type_can_be_written_as_json(sandbox: Sandbox) -> None:
    table = await sandbox.run(
        """select 1::hugeint h, 170141183460469231731687303715884105727::hugeint hh, 18446744073709551615::ubigint u,
           1.50::decimal(5,2) de, 'nan'::double nan, 'inf'::float inf, date '2020-01-02' d, time '10:00' t,
           timestamptz '2020-01-01 00:00:00+01' tz, timestamp '2020-01-01' ts, interval '1 month 2 days 3 seconds' i,
           '\\x00\\xFF'::blob b, {'a': [1, null]} st, map {'k': 1} m, uuid() is not null uu, null n, '{"a":1}'::json j,
           'a'::enum('a') e, [[1]] l, true bo""",
        [], 10, 10,
    )  # fmt: skip
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert orjson.loads(orjson.dumps(row)) == {
        "h": 1, "hh": "170141183460469231731687303715884105727", "u": "18446744073709551615", "de": "1.50",
        "nan": "nan", "inf": "inf", "d": "2020-01-02", "t": "10:00:00", "tz": "2019-12-31T23:00:00Z",
        "ts": "2020-01-01T00:00:00Z", "i": {"months": 1, "days": 2, "seconds": 3.0}, "b": "AP8=",
        "st": {"a": [1, None]}, "m": [["k", 1]], "uu": True, "n": None, "j": '{"a":1}', "e": "a", "l": [[1]],
        "bo": True,
    }  # fmt: skip


async def test_rows_are_counted(sandbox: Sandbox) -> None:
    table = await sandbox.run("select * from range(5000)", [], 10, 1234)
    assert (len(table.rows), table.truncated) == (1234, True)
    table = await sandbox.run("select * from range(1234)", [], 10, 1234)
    assert (len(table.rows), table.truncated) == (1234, False)
    assert (await sandbox.run("select 1 as a, 2 as a", [], 10, 5)).columns == ["a", "a"]


REFUSED = [
    "",
    "   -- nothing",
    "selekt 1",
    "select 1; select 2",
    "insert into tasks (task_id) values ('x')",
    "update tasks set state = 'failed'",
    "delete from tasks",
    "drop table tasks",
    "create table mine (a int)",
    "create temp table mine as select 1",
    "create macro f() as 1",
    "alter table tasks add column x int",
    "truncate tasks",
    "with gone as (delete from tasks returning *) select * from gone",
    "select 1 into outfile 'x'",
    "copy tasks to 'out.csv'",
    "copy (select 1) to '/dev/stdout'",
    "export database 'x'",
    "attach ':memory:' as other",
    "attach 'other.duckdb'",
    "detach memory",
    "use memory",
    "install httpfs",
    "load httpfs",
    "set threads = 1",
    "set enable_external_access = true",
    "reset all",
    "pragma database_list",
    "pragma enable_profiling",
    "call enable_logging()",
    "checkpoint",
    "begin",
    "commit",
    "prepare p as select 1",
    "execute p",
    "explain analyze select 1",
    "vacuum",
    "set variable x = 1",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/proc/self/environ')",
    "select * from read_json('https://example.org/x.json')",
    "select * from parquet_scan('x.parquet')",
    "select * from glob('/*')",
    "select * from '/etc/passwd'",
    "select * from 'https://example.org/x.csv'",
    "select * from sniff_csv('/etc/passwd')",
    "select * from duckdb_secrets()",
    "select * from duckdb_settings()",
    "select * from query('select 1')",
    "select * from query_table('tasks')",
    "select * from json_execute_serialized_sql('{}')",
    "select * from enable_logging()",
    "select * from force_checkpoint()",
    "select * from arrow_scan(1, 2, 3)",
    "select * from pandas_scan(1)",
    "select * from python_map_function(1)",
    "select * from (select * from (select * from seq_scan('tasks')))",
    "select (select count(*) from read_text('/etc/passwd'))",
    "select getenv('HOME')",
    "select current_setting('temp_directory')",
    "select getvariable('x')",
    "select write_log('x')",
    "select sleep_ms(100000)",
    "select repeat('x', 2000000000)",
    "select REPEAT('x', 2000000000)",
    "select main.repeat('x', 2000000000)",
    "select 'x'.repeat(2000000000)",
    "select lpad('x', 1000000000, 'y')",
    "select range(1000000000)",
    "select [x for x in range(1000000000)]",
    "select printf('%1000000000d', 1)",
    "select * from tasks order by rpad('x', 1000000000, 'y')",
    "select * from no_such_table",
    "select no_such_column from tasks",
    "select 1/0::decimal, 'x'::int",
    "select ?",
    "select string_agg('xxxxxxxxxx' || i, '') from range(40000000) r(i)",
    "select error('boom')",
]


@pytest.mark.parametrize("sql", REFUSED, ids=range(len(REFUSED)))
async def test_everything_else_is_refused(sandbox: Sandbox, sql: str) -> None:
    with pytest.raises(QueryRefused):
        await sandbox.run(sql, [], 20, 10)
    assert (await sandbox.run("select 1", [], 10, 1)).rows == [[1]]


async def test_variables_of_the_process_are_no_tables(sandbox: Sandbox) -> None:
    columns = rows = batch = [{"a": 1}]
    assert columns is rows is batch
    for name in ("columns", "rows", "batch", "incoming"):
        with pytest.raises(QueryRefused):
            await sandbox.run(f"select * from {name}", [], 10, 10)


async def test_an_answer_that_is_too_large_is_refused(sandbox: Sandbox) -> None:
    sql = "select string_agg(i::varchar, ',') from range(900000) r(i), range(6) s(j) group by j"
    with pytest.raises(QueryRefused, match="larger than"):
        await sandbox.run(sql, [], 30, 10)


@pytest.mark.parametrize(
    "sql",
    [
        "select count(*) from range(100000000000)",
        "with recursive t as (select 1 n union all select n + 1 from t) select max(n) from t",
        "select count(*) from range(1000000) a(x), range(1000000) b(y) where x * y = 7",
        "select * from range(1000000000) r(i) where i < 0",
    ],
)
async def test_what_takes_too_long_is_stopped(sandbox: Sandbox, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryTimeout):
        await sandbox.run(sql, [], 0.3, 10)
    assert time.monotonic() - started < 2
    assert (await sandbox.run("select 1", [], 10, 1)).rows == [[1]]


async def test_what_grows_too_much_is_stopped(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROWTH_BYTES", 200 * 2**20)
    doubling = """with recursive t as (select 'x' s, 0 n union all select s || s, n + 1 from t where n < 40)
        select max(length(s)) from t"""
    with pytest.raises(QueryRefused):
        await sandbox.run(doubling, [], 30, 10)


async def test_a_caller_that_leaves_frees_the_thread(sandbox: Sandbox) -> None:
    endless = "select count(*) from range(100000000000)"
    running = [asyncio.create_task(sandbox.run(endless, [], 60, 1)) for _ in range(module.THREADS)]
    await asyncio.wait(running, timeout=0.05)
    with pytest.raises(QueriesBusy):
        await sandbox.run("select 1", [], 0.2, 1)
    for task in running:
        task.cancel()
    await asyncio.wait(running)
    assert (await sandbox.run("select 1", [], 5, 1)).rows == [[1]]
