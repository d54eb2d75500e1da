"""The page of the reference about the read model's tables, from the SQL files and the comments in them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from bitinglip.projections import sql
from bitinglip.projections.opening import open_database
from bitinglip.settings import Projections

_MADE = re.compile(r"^create (?:table|view) self\.(\w+)", re.MULTILINE)
_ORDERS = re.compile(r"^(streams|parts|part of): ")
Columns = dict[str, list[tuple[Any, ...]]]


def page() -> str:
    """Return the page, without its first line."""
    columns = _columns()
    parts = ["# Tables\n\nWhat `bitinglip query` and `POST /v1/query` can ask, one section a file of the read model.\n"]
    for name, text in sorted(sql.texts().items()):
        tables = [table for table in _MADE.findall(text) if table in columns]
        if tables:
            parts.append(f"\n## {name}\n\n{_head(text)}\n")
            parts += [_table(table, columns[table]) for table in tables]
    return "".join(parts)


def _columns() -> Columns:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(Path(folder) / "empty.duckdb", Projections())
        try:
            rows = database.rows(sql.blocks(sql.SYSTEM)["schema"])
        finally:
            database.close()
    return {table: list(found) for table, found in groupby(rows, lambda row: row[0])}


def _head(text: str) -> str:
    """Return what a file's first comment says, but for what it says to the machine."""
    return "\n".join(line for line in _comment(text) if not _ORDERS.match(line)).strip()


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if not line.startswith("--"):
            return
        said = line.removeprefix("--").strip()
        yield f"\n{said}" if said.startswith("Units:") else said


def _table(name: str, columns: list[tuple[Any, ...]]) -> str:
    rows = "".join(f"| `{row[2]}` | {row[3]} | {row[4]} |\n" for row in columns)
    return f"\n### `{name}`\n\n{columns[0][1]}\n\n| column | type | meaning |\n| --- | --- | --- |\n{rows}"
