"""`bitinglip batch …`: many tasks with one handle."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json, Url, client
from bitinglip.cli.task import metadata_of, quoted
from bitinglip.errors import InvalidInput

app = typer.Typer(help="Submit many tasks with one handle, and see how far they are.", no_args_is_help=True)

COLUMNS = ("batch_id", "name", "state", "tasks", "done", "opened", "completed")


@app.command()
def create(
    file: Annotated[str, typer.Argument(help="File with a task as JSON on each line; - is the standard input.")],
    name: Annotated[str | None, typer.Option(help="A name of your own for it.")] = None,
    kind: Annotated[str | None, typer.Option(help="Kind of the tasks that give none.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model of the tasks that give none.")] = None,
    metadata: Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE; may be repeated.")] = None,
    key: Annotated[str | None, typer.Option("--idempotency-key", help="A repeat with it is the same batch.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit the tasks of a file, all of them or none, and print the batch's id."""
    defaults = {field: value for field, value in (("kind", kind), ("model", model)) if value is not None}
    body = {"name": name, "metadata": metadata_of(metadata), "defaults": defaults, "tasks": _read(file)}
    made = client(url).request("POST", "/v1/batches", body=body, headers={"Idempotency-Key": key} if key else None)
    render.json(made) if as_json else render.line(made["batch_id"])


@app.command("list")
def list_(url: Url = None, as_json: Json = False) -> None:
    """Print the latest batches, the newest first."""
    found = client(url).get("/v1/batches")["batches"]
    if as_json:
        for batch in found:
            render.json(batch)
        return
    none = "No batches; `bitinglip batch create FILE` makes one."
    render.table(COLUMNS, [_row(batch) for batch in found], fold=("name",), spare=("completed", "opened"), none=none)


@app.command()
def show(batch_id: str, url: Url = None, as_json: Json = False) -> None:
    """Print a batch, and what has become of its tasks."""
    found = client(url).get(f"/v1/batches/{quoted(batch_id)}")
    render.json(found) if as_json else render.pairs(found.items())


def _row(batch: dict[str, Any]) -> list[Any]:
    times = {name: render.moment(batch[f"{name}_at"]) for name in ("opened", "completed")}
    return [(batch | times)[column] for column in COLUMNS]


def _read(file: str) -> list[Any]:
    tasks: list[Any] = []
    for number, line in enumerate(_bytes(file).splitlines(), 1):
        try:
            tasks += [orjson.loads(line)] if line.strip() else []
        except orjson.JSONDecodeError as error:
            raise InvalidInput(field=f"{file}:{number}", problem=f"is not JSON: {error}") from error
    return tasks


def _bytes(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(field=file, problem=error.strerror or str(error)) from error
