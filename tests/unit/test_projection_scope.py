"""What one key's SQL sees, and the ways out of the sandbox that are known: each is closed, and the process lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bitinglip.errors import QueryRefused, QueryTimeout
from bitinglip.events.batch import BatchOpened
from bitinglip.events.task import TaskAssigned, TaskSubmitted
from bitinglip.ids import encode_ulid
from bitinglip.projections import sandbox as module
from bitinglip.projections.opening import open_database
from bitinglip.projections.query import CursorPool
from bitinglip.projections.sandbox import EVERYTHING, Bounds, Question, Sandbox, Scope
from bitinglip.projections.writer import write
from tests.unit.projection_support import SETTINGS, message

OURS, THEIRS = "ours", "it's theirs"
MINE = Scope(OURS)


def submitted(number: int, key_id: str | None) -> TaskSubmitted:
    example = TaskSubmitted.example | {"task_id": encode_ulid(number), "key_id": key_id}
    return TaskSubmitted.model_validate(example | {"params": {"message": f"secret of {key_id}"}})


@pytest.fixture
async def sandbox(tmp_path: Path) -> AsyncIterator[Sandbox]:
    database = open_database(tmp_path / "p.duckdb", SETTINGS)
    database.add_checkpoint("TASKS", "then")
    tasks = [submitted(1, OURS), submitted(2, THEIRS), submitted(3, None), submitted(4, OURS)]
    batches = [
        BatchOpened.model_validate(BatchOpened.example | {"batch_id": encode_ulid(number), "key_id": key_id})
        for number, key_id in ((11, OURS), (12, THEIRS))
    ]
    told: list[tuple[Any, str]] = [(task, task.task_id) for task in tasks]
    told += [(batch, batch.batch_id) for batch in batches]
    for task_id in (encode_ulid(2), encode_ulid(4)):
        assigned = TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task_id, "attempt": 1})
        told.append((assigned, task_id))
    write(database, "TASKS", [message(event, at, about=about) for at, (event, about) in enumerate(told, 1)])
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    pool = CursorPool(database, "sandbox", module.THREADS)
    yield Sandbox(pool.run)
    await pool.close()
    database.close()


async def rows(sandbox: Sandbox, sql: str, scope: Scope = MINE, params: Any = ()) -> list[list[Any]]:
    return (await sandbox.run(sql, params, 20, 100, scope)).rows


OWN = [
    ("select count(*) from tasks", [[2]]),
    ("select count(*) from TASKS", [[2]]),
    ('select count(*) from "Tasks"', [[2]]),
    ("select count(*) from /* main. */ tasks -- where true", [[2]]),
    ("select distinct key_id from tasks t", [[OURS]]),
    ("select count(*) from events", [[4]]),
    ("select count(*) from batches", [[1]]),
    ("select count(*) from models", [[0]]),
    ("select count(*) from attempts", [[1]]),
    ("select count(*) from usage", [[0]]),
    ("with mine as (select * from tasks) select count(*) from mine", [[2]]),
    ("with a as (with b as (from tasks) from b) select count(*) from a", [[2]]),
    ("select (select count(*) from tasks), (select count(*) from events)", [[2, 4]]),
    ("select count(*) from tasks a join tasks b on true", [[4]]),
    ("select count(*) from tasks where task_id in (select about from events)", [[2]]),
    ("select count(*) from (select 1), lateral (select * from tasks)", [[2]]),
    ("select count(*) from tasks tablesample 100%", [[2]]),
    ("select a from tasks t(a) order by a limit 1", [[encode_ulid(1)]]),
    ("from (pivot tasks on state in ('queued', 'running') using count(*) group by kind)", [["text-generation", 1, 1]]),
    ("select column_name, count from (summarize tasks) limit 1", [["task_id", 2]]),
    ("with recursive t(n) as (select 1 union all select n + 1 from t where n < (select count(*) from tasks)) "
     "select max(n) from t", [[2]]),
    ("from tasks select count(*) union all from tasks select count(*)", [[2], [2]]),
    ("select sum((select count(*) from tasks u where u.task_id = t.task_id)) from tasks t", [[2]]),
    ("select [x * 2 for x in [1, 2] if x > 1]", [[[4]]]),
    ("select count(*) from tasks where key_id = 'it''s theirs' or true", [[2]]),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "expected"), OWN, ids=range(len(OWN)))
async def test_a_key_sees_its_own(sandbox: Sandbox, sql: str, expected: list[list[Any]]) -> None:
    assert await rows(sandbox, sql) == expected


async def test_what_is_asked_for_every_day_is_not_too_much(sandbox: Sandbox) -> None:
    vector = ",".join(f"{n / 7}" for n in range(768))
    assert await rows(
        sandbox, f"select list_cosine_similarity([{vector}], [{vector}]) > 0.9 and count(*) = 2 from tasks"
    )
    steps = """with a as (select task_id, coalesce(wait_ms, run_ms, 0) + coalesce(run_ms, 0) as ms, state from tasks),
        b as (select *, case when ms < 10 then 'fast' when ms < 100 then 'good' when ms < 999 then 'slow' end as kind
            from a),
        c as (select kind, state, count(*) as n, avg(ms) as mean, max(ms) as most from b group by all),
        d as (select *, mean / most as ratio, n / sum(n) over () as share from c)
        select count(*) from d where ratio is null or (share > 0 and ratio < 1 and mean > 0 and most > mean)"""
    assert len(await rows(sandbox, steps)) == 1
    joined = "select count(*) from tasks t0 " + " ".join(f"join tasks t{n} using (task_id)" for n in range(1, 20))
    assert await rows(sandbox, joined) == [[2]]
    assert await rows(sandbox, " union all ".join(["select count(*) from tasks"] * 40)) == [[2]] * 40


async def test_subqueries_may_be_nested(sandbox: Sandbox) -> None:
    sql = "select count(*) from " + "(select * from " * 20 + "tasks" + ")" * 20
    assert await rows(sandbox, sql) == [[2]]


async def test_a_key_is_text_and_nothing_else(sandbox: Sandbox) -> None:
    assert await rows(sandbox, "select count(*), any_value(key_id) from tasks", Scope(THEIRS)) == [[1, THEIRS]]
    assert await rows(sandbox, "select count(*) from tasks", Scope("x' or true or '")) == [[0]]
    assert await rows(sandbox, "select count(*) from tasks where state = $s", params={"s": "queued"}) == [[1]]
    assert await rows(sandbox, "select ? || count(*) from tasks", params=["n"]) == [["n2"]]
    assert await rows(sandbox, "select count(*) from tasks", EVERYTHING) == [[4]]


OTHERS = [
    "select * from main.tasks",
    "select * from memory.main.tasks",
    "select * from temp.tasks",
    "select main.tasks.key_id from main.tasks",
    "select * from workers",
    "select * from saved_queries",
    "select * from latency",
    "select * from errors",
    "select * from nodes",
    "select * from checkpoints",
    "select * from projection_versions",
    "with tasks as (from tasks) from tasks",
    "with workers as (select 1) from workers",
    "select * from (with duckdb_tables as (select 1) from duckdb_tables), duckdb_tables",
    "select (with pg_class as (select 1) from pg_class), * from pg_class",
    "with \"secret.csv\" as (select 1) from 'secret.csv'",
    "from (with x as (select 1) from x), y",
    "describe workers",
    "summarize workers",
    "show tables",
    "from (show all tables)",
    "from duckdb_tables()",
    "from duckdb_columns()",
    "from duckdb_views()",
    "from sqlite_master",
    "from information_schema.tables",
    "from pg_catalog.pg_views",
    "from tasks at (version => 1)",
    "from query('from main.tasks')",
    "from query_table('tasks')",
    "from query_table(['tasks', 'workers'])",
    "from seq_scan('tasks')",
    "from summary(tasks)",
    "from json_execute_serialized_sql('{}')",
    "select pg_get_viewdef(1)",
    "select current_query()",
    "select stats(task_id) from tasks",
    "from duckdb_table_sample('tasks')",
    "from pragma_storage_info('tasks')",
    "from pragma_table_info('tasks')",
    "from histogram(tasks, key_id)",
    "from histogram_values(tasks, key_id)",
    "from task_changes",
    "from batch",
    "from incoming",
    "from tаsks",
    "from task\u017f",
    "from \u202etasks",
    "pivot tasks on state using count(*)",
    "from recurring.tasks",
    "explain from tasks",
]


@pytest.mark.parametrize("sql", OTHERS, ids=range(len(OTHERS)))
async def test_a_key_sees_nothing_else(sandbox: Sandbox, sql: str) -> None:
    with pytest.raises(QueryRefused):
        await sandbox.run(sql, [], 10, 10, MINE)


async def test_a_plan_is_for_those_who_see_everything(sandbox: Sandbox) -> None:
    plan = await sandbox.ask(Question("select task_id from tasks", explain="plan"), Bounds(10, 10))
    assert plan.columns == ["explain_key", "explain_value"]
    assert "tasks" in plan.rows[0][1]
    measured = await sandbox.ask(Question("select count(*) from tasks", explain="analyze"), Bounds(10, 10))
    assert "Total Time" in measured.rows[0][1]
    with pytest.raises(QueryRefused, match="not yours"):
        await sandbox.ask(Question("select 1", scope=MINE, explain="plan"), Bounds(10, 10))
    with pytest.raises(QueryRefused, match="not exactly one SELECT"):
        await sandbox.ask(Question("select 1; select 2", explain="plan"), Bounds(10, 10))


async def test_the_archive_is_seen_through_its_view_alone(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    folder.mkdir()
    duckdb.sql("select 1 as a").write_parquet(str(folder / "a.parquet"))
    database = open_database(tmp_path / "p.duckdb", SETTINGS.model_copy(update={"archive_path": folder}))
    pool = CursorPool(database, "sandbox", 1)
    sandbox = Sandbox(pool.run)
    file = f"'{folder}/a.parquet'"
    assert database.rows(f"select a from {file}") == [(1,)]
    for scope in (EVERYTHING, MINE):
        assert (await sandbox.run("select count(*) from events", [], 10, 10, scope)).rows == [[0]]
        direct = [f"from {file}", f"describe {file}", f"summarize {file}", f"from read_parquet({file})"]
        direct += [f'from "{folder}/a.parquet"', f"from glob('{folder}/*')", f"select * from tasks, {file}"]
        for sql in direct:
            with pytest.raises(QueryRefused):
                await sandbox.run(sql, [], 10, 10, scope)
    await pool.close()
    database.close()


def nested(piece: str, times: int, inner: str, end: str) -> str:
    return "select " + piece * times + inner + end * times


DOUBLED = """with recursive t as (select '[' s, ']' e, 0 n union all select s || s, e || e, n + 1 from t where n < 21),
    u as (select arg_max(s, n) || arg_max(e, n) as j from t) select """
WAYS_OUT = {
    "parentheses": nested("(", 20_000, "1", ")"),
    "lists": nested("[", 20_000, "1", "]"),
    "calls": nested("abs(", 15_000, "1", ")"),
    "subqueries": "select * from " + "(select * from " * 3_000 + "(select 1)" + ")" * 3_000,
    "a chain of names": "select a" + ".b" * 40_000,
    "a type": "select null::" + "struct(a " * 9_000 + "int" + ")" * 9_000,
    "a sum": "select 1" + "+1" * 49_000,
    "joins": "from (select 1 a)" + " join (select 1 a) using (a)" * 3_500,
    "long": "select '" + "x" * 100_001 + "'",
    "zero": "select '\0'",
    "named subqueries that double": "with a0 as (select 1 x), "
    + ", ".join(f"a{n} as not materialized (select a.x from a{n - 1} a, a{n - 1} b)" for n in range(1, 40))
    + " select count(*) from a39",
    "an expression that doubles, by names": "select 'x' || count(*) a, " + ", ".join(
        f"a{n} || a{n} a{n + 1}".replace("a0", "a") for n in range(30)
    ),
    "an expression that doubles, by subqueries": "select * from "
    + "(select a || a as a from " * 24 + "(select state as a from tasks)" + ")" * 24 + " where a = 'x'",
    "an expression that doubles, by named ones": "with a0 as (select state x, state y from tasks), "
    + ", ".join(f"a{n} as (select x || y x, y || x y from a{n - 1})" for n in range(1, 24))
    + " select * from a23 where x = 'x'",
    "many joins": "select count(*) from tasks t0 "
    + " ".join(f"join tasks t{n} on t{n}.task_id = t{n - 1}.task_id" for n in range(1, 250)),
    "many named subqueries": "with "
    + ", ".join(f"a{n} as (from a{n - 1})" if n else "a0 as (select 1)" for n in range(2_500))
    + " from a2499",
    "a deep shape": "select json_transform('1', '" + "[" * 40_000 + '"INT"' + "]" * 40_000 + "')",
    "a shape that is computed": "select json_transform('1', '[' || '\"INT\"' || ']')",
    "a shape from a parameter": "select from_json('1', ?)",
    "a variant": "select '" + "[" * 40_000 + "]" * 40_000 + "'::json::variant",
    "a variant in a struct": "select '{}'::json::struct(a variant)",
    "a variant by a shape": "select from_json('[]', '\"VaRiAnT\"')",
    "deep JSON, compared": DOUBLED + "json_contains(j, j) from u",
    "deep JSON, drawn": DOUBLED + "json_pretty(j) from u",
    "deep JSON, walked": DOUBLED + "(select count(*) from json_tree(j)) from u",
    "JSON, merged": "select json_merge_patch(j, j) from (select json_group_object(i, i) j from range(100000) r(i))",
    "maps, put together": "select map_concat(m, m) from (select map(list(i), list(i)) m from range(100000) r(i))",
    "texts, compared": DOUBLED + "levenshtein(j, j) from u",
    "grouping sets": "select count(*) from (select " + ", ".join(f"{n} a{n}" for n in range(30)) + ") group by cube("
    + ", ".join(f"a{n}" for n in range(30)) + ")",
    "a regular expression": "select regexp_matches('a', '((a{1,1000}){1,1000}){1,1000}')",
    "a list by its length": "select list_resize([1], 2000000000)",
    "a bit by its length": "select bitstring_agg(i, 0, 4000000000000) from range(2) r(i)",
    "a sample by its size": "select reservoir_quantile(i, 0.5, 2000000000) from range(2) r(i)",
    "an environment variable": "select getenv('HOME')",
    "a secret": "from which_secret('s3://x', 's3')",
    "a sniffed file": "from sniff_csv('secret.csv')",
    "a file by its name": "from 'secret.csv'",
    "files by a pattern": "from glob('/etc/*')",
    "a file of DuckDB's": "from read_duckdb('p.duckdb')",
    "a remote file": "from read_parquet('https://example.org/a.parquet')",
    "a metadata function": "from parquet_metadata('x.parquet')",
    "a test function": "from test_vector_types(null::int)",
    "a Python function": "from python_map_function(1)",
    "a user's aggregate state": "select finalize(x) from (select '1'::blob x)",
    "SQL as JSON": "select json_serialize_sql('select 1')",
    "a log": "from duckdb_logs",
    "a sleep": "select sleep_ms(1000000)",
    "an error with a text": "select error(repeat_) from (select 'x' repeat_)",
}  # fmt: skip


@pytest.mark.parametrize("scope", [EVERYTHING, MINE], ids=["everything", "one key"])
@pytest.mark.parametrize("sql", WAYS_OUT.values(), ids=WAYS_OUT.keys())
async def test_a_way_out_is_closed(sandbox: Sandbox, sql: str, scope: Scope) -> None:
    with pytest.raises(QueryRefused):
        await sandbox.run(sql, ['"INT"'] if "?" in sql else [], 20, 10, scope)
    assert await rows(sandbox, "select 1") == [[1]]


ENDLESS = {
    "text that doubles": """select sum(length(d)) from (select 'x' || i a, a || a || a || a || a || a || a || a b,
        b || b || b || b || b || b || b || b c, c || c || c || c || c || c || c || c d from range(100000000) r(i))""",
    "text that is replaced by itself": """select length(replace(replace(replace(j, 'x', j), 'x', j), 'x', j))
        from (select string_agg('x', '') j from range(900))""",
    "lists of lists": "select l from (select list(i) l from range(1000000) r(i)), range(100000)",
    "a join without a condition": "select count(*) from range(10000000) a(x), range(10000000) b(y) where x * y = -7",
    "a function of each": "select list_sum(list_transform(l, lambda x: list_sum(list_transform(l, lambda y: x * y)))) "
    "from (select list(i) l from range(100000) r(i))",
    "a recursion": "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t",
}


@pytest.mark.parametrize("sql", ENDLESS.values(), ids=ENDLESS.keys())
async def test_what_takes_all_there_is_ends(sandbox: Sandbox, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GROWTH_BYTES", 400 * 2**20)
    with pytest.raises((QueryRefused, QueryTimeout)):
        await sandbox.run(sql, [], 1, 10)
    assert await rows(sandbox, "select count(*) from tasks") == [[2]]
