"""`bitinglip query`: SQL over the read models."""

from __future__ import annotations

import csv
import sys
from enum import StrEnum
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json, Url, client
from bitinglip.errors import InvalidInput


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def query(
    sql: Annotated[str | None, typer.Argument(help="One SELECT; - reads it from standard input.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="Value of the next ?, as JSON or text.")
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    schema: Annotated[bool, typer.Option("--schema", help="Print the tables and columns instead.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask the read models with SQL."""
    gateway = client(url)
    if schema:
        _print_schema(gateway.get("/v1/schema"), as_json=as_json)
        return
    if sql is None:
        raise InvalidInput(field="SQL", problem="no query was given (`--schema` shows what can be asked)")
    body: dict[str, Any] = {"sql": sys.stdin.read() if sql == "-" else sql}
    body |= {"params": [_value(text) for text in param]} if param else {}
    answer = gateway.request("POST", "/v1/query", body=body)
    _print(answer, Format.json if as_json else format_)
    if answer.get("truncated"):
        render.note(f"only the first {len(answer['rows'])} rows are shown (projections.query_max_rows)")


def _print(answer: dict[str, Any], format_: Format) -> None:
    columns: list[str] = answer["columns"]
    if format_ is Format.json:
        for row in answer["rows"]:
            render.json(dict(zip(columns, row, strict=True)))
    elif format_ is Format.csv:
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows([[None if value is None else render.cell(value) for value in row] for row in answer["rows"]])
    else:
        render.table(columns, answer["rows"])


def _print_schema(schema: Any, *, as_json: bool) -> None:
    if as_json:
        render.json(schema)
        return
    rows = schema["columns"] if isinstance(schema, dict) else schema
    render.table(("table", "column", "type", "meaning"), [_schema_row(row) for row in rows])


def _schema_row(row: Any) -> list[Any]:
    if isinstance(row, dict):
        return [row.get("table"), row.get("column"), row.get("type"), row.get("comment")]
    return list(row)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
