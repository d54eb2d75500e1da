"""Whose data a stranger's SQL may see: everything, or what belongs to one API key.

For one key, the statement is written anew: in the place of each table stands a subquery that has only the key's rows.
What is run is judged once more: a table may stand nowhere but in such a subquery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson

from bitinglip.errors import QueryRefused
from bitinglip.projections.database import Database
from bitinglip.projections.vetting import Node, Rules, fingerprint, refusal, rewritten, too_odd

_OWN = "key_id = {key}"
_OWN_EVENT = """stream = 'TASKS' and (
    about in (select task_id from main.tasks where key_id = {key})
    or about in (select batch_id from main.batches where key_id = {key})
)"""
ROWS_OF_A_KEY: Mapping[str, str] = {
    "tasks": _OWN,
    "batches": _OWN,
    "usage": _OWN,
    "attempts": _OWN,
    "events": _OWN_EVENT,
    "models": "true",
}
"""Which rows of a table belong to a key. Other tables are not there for it."""

_NAMES = """
select table_name, 'ours' from duckdb_tables() where schema_name = 'main' and not temporary and not internal
union all
select view_name, if(schema_name = 'main' and not internal and not temporary, 'ours', 'system') from duckdb_views()
"""


@dataclass(frozen=True, slots=True)
class Scope:
    """What may be seen: all of it, or what belongs to a key."""

    key_id: str | None = None
    """The key; none: everything."""


EVERYTHING = Scope()


def vetted(cursor: Database, statement: str, scope: Scope) -> str:
    """Return the statement as it may be run in this scope.

    Raises:
        QueryRefused: it is not one SELECT, or names or calls what it may not; the error says what.
        duckdb.Error: it is no SQL.
    """
    _refuse(too_odd(statement))
    try:
        return _vetted(cursor, statement, scope)
    except (RecursionError, orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise QueryRefused(problem="it is nested too deeply") from error


def _vetted(cursor: Database, statement: str, scope: Scope) -> str:
    if not cursor.is_one_select(statement):
        raise QueryRefused(problem="it is not exactly one SELECT")
    parsed, rules = _parsed(cursor, statement), _rules(cursor, scope)
    _refuse(refusal(parsed, rules))
    return statement if scope.key_id is None else _narrowed(cursor, parsed, rules, scope.key_id)


def _narrowed(cursor: Database, parsed: Node, rules: Rules, key_id: str) -> str:
    filters = {name: _filter(cursor, name, key_id) for name in rules.tables}
    document = orjson.dumps(rewritten(parsed, filters)).decode()
    statement = cast("str", cursor.rows("select json_deserialize_sql(?::json)", [document])[0][0])
    trusted = {fingerprint(each["subquery"]) for each in filters.values()}
    nothing_else = Rules(frozenset(), rules.system | rules.tables, whole=False)
    if not cursor.is_one_select(statement):
        raise QueryRefused(problem="it is not exactly one SELECT")
    _refuse(refusal(_parsed(cursor, statement), nothing_else, trusted))
    return statement


def _filter(cursor: Database, table: str, key_id: str) -> Node:
    """Return the parsed subquery that has the key's rows of a table."""
    key = "'" + key_id.replace("'", "''") + "'"
    rows = ROWS_OF_A_KEY[table].format(key=key)
    written = f"select * from (select * from main.{table} where {rows})"  # noqa: S608  (ours, and the key is quoted)
    return _parsed(cursor, written)["statements"][0]["node"]["from_table"]


def _rules(cursor: Database, scope: Scope) -> Rules:
    found = cursor.rows(_NAMES)
    ours = {name.lower() for name, kind in found if kind == "ours"}
    system = {name.lower() for name, kind in found if kind == "system"}
    if scope.key_id is None:
        return Rules(ours, system, whole=True)
    return Rules(ours & ROWS_OF_A_KEY.keys(), system | ours, whole=False)


def _parsed(cursor: Database, statement: str) -> Node:
    found: list[tuple[Any, ...]] = cursor.rows("select json_serialize_sql(?::varchar)", [statement])
    return orjson.loads(found[0][0])


def _refuse(problem: str | None) -> None:
    if problem is not None:
        raise QueryRefused(problem=problem)
