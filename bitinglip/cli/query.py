"""`bitinglip query`: SQL over the read models, and saved queries.

`bitinglip query SQL` and `bitinglip query save …` are one command: what is no subcommand is SQL.
"""

from __future__ import annotations

import csv
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from typer.core import TyperGroup

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.options import Json, Url, client
from bitinglip.cli.task import quoted
from bitinglip.errors import InvalidInput


class Format(StrEnum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"
    arrow = "arrow"


class _Group(TyperGroup):
    """Takes what names no subcommand as SQL to be run."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Group, help="Ask the read models with SQL: `bitinglip query SQL`, or by a saved query.")
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write the answer into.")]


@app.command()
def run(
    sql: Annotated[str | None, typer.Argument(help="One SELECT; - reads it from standard input.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="Value of the next ?, or NAME=VALUE for $NAME; as JSON or text."),
    ] = None,
    saved: Annotated[str | None, typer.Option("--saved", help="Run the saved query of this name.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print how it would be answered.")] = False,
    analyze: Annotated[bool, typer.Option("--analyze", help="Run it, and print where the time went.")] = False,
    format_: Annotated[Format, typer.Option("--format", help="How to print the rows.")] = Format.table,
    output: Output = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the tables and columns instead.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Run SQL, or a saved query; the word `run` can be left out."""
    gateway = client(url)
    if schema:
        _print_schema(gateway.get("/v1/schema"), as_json=as_json)
        return
    path, body = _question(sql, param or [], saved)
    if explain or analyze:
        plan = gateway.request("POST", path, body=body | {"explain": "analyze" if analyze else "plan"})
        render.line("\n".join(str(row[1]) for row in plan["rows"]).rstrip())
    elif output is not None or format_ is Format.arrow:
        _export(gateway, path, body, format_, output)
    else:
        _ask(gateway, path, body, Format.json if as_json else format_)


@app.command()
def save(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    sql: Annotated[str, typer.Argument(help="One SELECT; - reads it from standard input.")],
    description: Annotated[str | None, typer.Option(help="What it answers.")] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", help="A parameter that it takes: NAME[:TYPE][=DEFAULT]; without one, required."),
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Give a query a name; every gateway has it then."""
    body = {
        "sql": sys.stdin.read() if sql == "-" else sql,
        "description": description,
        "parameters": dict(_declared(text) for text in param or []),
    }
    found = client(url).request("PUT", f"/v1/queries/{quoted(name)}", body=body)
    render.json(found) if as_json else render.line(found["name"])


@app.command("list")
def list_(url: Url = None, as_json: Json = False) -> None:
    """Print the saved queries."""
    found = client(url).get("/v1/queries")["queries"]
    if as_json:
        for each in found:
            render.json(each)
        return
    rows = [[each["name"], _signature(each), each["description"], render.ago(each["saved_at"])] for each in found]
    none = "No saved queries; `bitinglip query save` makes one."
    render.table(("name", "parameters", "description", "saved"), rows, fold=("parameters", "description"), none=none)


@app.command()
def show(name: str, url: Url = None, as_json: Json = False) -> None:
    """Print a saved query."""
    found = client(url).get(f"/v1/queries/{quoted(name)}")
    if as_json:
        render.json(found)
        return
    shown = ("name", "description", "saved_at", "by")
    render.pairs([*[(key, found[key]) for key in shown], ("parameters", _signature(found))])
    render.line("\n" + found["sql"])


@app.command()
def delete(name: str, url: Url = None, as_json: Json = False) -> None:
    """Delete a saved query."""
    found = client(url).request("DELETE", f"/v1/queries/{quoted(name)}")
    render.json(found) if as_json else render.line(f"{found['name']} deleted")


def _question(sql: str | None, params: list[str], saved: str | None) -> tuple[str, dict[str, Any]]:
    if saved is not None:
        return f"/v1/queries/{quoted(saved)}/run", {"params": dict(_named(text) for text in params)}
    if sql is None:
        raise InvalidInput(field="SQL", problem="no query was given (`--schema` shows what can be asked)")
    statement = sys.stdin.read() if sql == "-" else sql
    named = bool(params) and "$" in statement and "?" not in statement
    values = dict(_named(text) for text in params) if named else [_value(text) for text in params]
    return "/v1/query", {"sql": statement} | ({"params": values} if params else {})


def _ask(gateway: Client, path: str, body: dict[str, Any], format_: Format) -> None:
    answer = gateway.request("POST", path, body=body)
    _print(answer, format_)
    if answer.get("truncated"):
        render.note(f"only the first {len(answer['rows'])} rows are shown (projections.query_max_rows)")


def _export(gateway: Client, path: str, body: dict[str, Any], format_: Format, output: Path | None) -> None:
    """Write the answer as it comes; into a file under a name of its own until all of it is there."""
    form = {Format.table: Format.csv}.get(format_, format_).value
    if output is None:
        cut = gateway.export(path, body | {"format": form}, sys.stdout.buffer)
    else:
        partial = output.with_name(output.name + ".part")
        try:
            with partial.open("wb") as file:
                cut = gateway.export(path, body | {"format": form}, file)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    if cut:
        render.note("there are more rows than the answer may have (projections.query_export_max_rows)")


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


def _signature(query: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}:{each['type']}" + ("" if each["required"] else f"={orjson.dumps(each['default']).decode()}")
        for name, each in query["parameters"].items()
    )


def _declared(text: str) -> tuple[str, dict[str, Any]]:
    head, sign, default = text.partition("=")
    name, _, kind = head.partition(":")
    return name, {"type": kind or "text", "required": not sign, "default": _value(default) if sign else None}


def _named(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise InvalidInput(field="--param", problem=f"{text!r} is not NAME=VALUE")
    return name, _value(value)


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
