"""Statements that one connection runs for every batch, planned once: however few its events are, planning costs most.

DuckDB keeps the plan of a prepared statement unless it reads a table. So what a statement makes for those after it,
`create or replace temp table <name> as ...`, is no table here but an Arrow one, which is offered by that name.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

warnings.filterwarnings("ignore", "Arrow output on a DB-API result", UserWarning)  # its other way costs 0.5 ms more
_MAKES = re.compile(r"^create or replace temp table (\w+) as\s", re.MULTILINE)
_PLANNED = frozenset(
    {
        duckdb.StatementType.SELECT,
        duckdb.StatementType.INSERT,
        duckdb.StatementType.UPDATE,
        duckdb.StatementType.DELETE,
    }
)


class Prepared:
    """The statements of one connection, by their texts, and the Arrow tables that they read and make."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._steps: dict[str, list[_Step]] = {}
        self._sources: dict[str, _Source] = {}
        self._named: set[str] = set()
        """The sources whose names the connection knows."""
        self._plans = 0

    def offer(self, name: str, table: Any) -> None:
        """Let statements read a pyarrow.Table by a name: planned for its columns, which are mostly what they were."""
        source = self._sources.get(name)
        if source is None or source.schema != table.schema:
            if source is not None:
                self._drop_plans()
            source = self._sources[name] = _Source(table.schema)
            self._named.discard(name)
        source.table = table
        if name not in self._named:
            self._connection.register(name, source)
            self._named.add(name)

    def table(self, name: str) -> Any:
        """Return the table that was last offered, or made, by a name."""
        return self._sources[name].table

    def rolled_back(self) -> None:
        """Know that the connection has undone a transaction, and with it the names that were given in it."""
        self._named.clear()

    def let_go(self) -> None:
        """Hold the rows of no table any longer."""
        for source in self._sources.values():
            source.table = None

    def run(self, statements: str, texts: Mapping[str, str] | None = None) -> duckdb.DuckDBPyConnection:
        """Run statements, each with those of the parameters that it names; the last one has the answer.

        A parameter needs a cast in the statement (`$stream::varchar`): one of unknown type has it planned each time.
        """
        if statements not in self._steps:
            self._steps[statements] = [_Step.of(each) for each in self._connection.extract_statements(statements)]
        for step in self._steps[statements]:
            self._do(step, texts or {})
        return self._connection

    def _do(self, step: _Step, texts: Mapping[str, str]) -> None:
        if not step.is_planned:
            self._connection.execute(step.query)
            return
        if step.plan is None:
            self._plans += 1
            self._connection.execute(f"prepare plan_{self._plans} as {step.query}")
            step.plan = f"plan_{self._plans}"
        given = ", ".join(f"{name} := {_literal(texts[name])}" for name in sorted(step.parameters))
        self._connection.execute(f"execute {step.plan}({given})" if given else f"execute {step.plan}")
        if step.makes is not None:
            self.offer(step.makes, self._connection.to_arrow_table())

    def _drop_plans(self) -> None:
        for step in (step for steps in self._steps.values() for step in steps if step.plan is not None):
            self._connection.execute(f"deallocate {step.plan}")
            step.plan = None


@dataclass(slots=True)
class _Step:
    query: str
    makes: str | None
    """The name of what it makes, if it makes anything for the steps after it."""
    parameters: frozenset[str]
    is_planned: bool
    plan: str | None = None

    @staticmethod
    def of(statement: duckdb.Statement) -> _Step:
        text = statement.query.strip().rstrip(";")
        if made := _MAKES.search(text):
            return _Step(text[made.end() :], made[1], frozenset(statement.named_parameters), is_planned=True)
        return _Step(text, None, frozenset(statement.named_parameters), is_planned=statement.type in _PLANNED)


class _Source:
    """What a plan reads: the Arrow table that there is when it runs (the Arrow PyCapsule interface)."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.table: Any = None

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
