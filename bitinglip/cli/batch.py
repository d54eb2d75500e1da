"""`bitinglip batch …`: many tasks with one handle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import orjson
import typer

from bitinglip.cli import batchwatch, bulk, render
from bitinglip.cli.client import Client, ProblemAnswer
from bitinglip.cli.options import Json, Url, client
from bitinglip.cli.task import metadata_of, quoted
from bitinglip.errors import BitingLipError, InvalidInput

app = typer.Typer(help="Submit many tasks with one handle, see how far they are, end them.", no_args_is_help=True)

COLUMNS = ("batch_id", "name", "state", "tasks", "done", "opened", "completed")
PART_MOST = 10_000
"""Tasks that a gateway takes in one request."""
PART_BYTES = 3_500_000
"""Bytes of tasks in one request, somewhat below the `gateway.max_body_bytes` that holds unless set."""

File = Annotated[str, typer.Argument(help="File with a task as JSON on each line; - is the standard input.")]
Kind = Annotated[str | None, typer.Option(help="Kind of the tasks that give none.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Model of the tasks that give none.")]
Private = Annotated[
    bool | None, typer.Option("--private/--not-private", help="For tasks that do not say: keep them out of the log.")
]
Key = Annotated[str | None, typer.Option("--idempotency-key", help="A repeat with it puts nothing in twice.")]


class Part(NamedTuple):
    """Tasks that go with one request."""

    tasks: list[dict[str, Any]]
    first_line: int
    last_line: int


@app.command()
def create(
    file: File,
    name: Annotated[str | None, typer.Option(help="A name of your own for it.")] = None,
    kind: Kind = None,
    model: Model = None,
    private: Private = None,
    metadata: Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE; may be repeated.")] = None,
    stay_open: Annotated[bool, typer.Option("--open", help="Leave it open: `batch add` follows, then close.")] = False,
    key: Key = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit the tasks of a file, and print the batch's id.

    All of them are taken, or none; of a file that is too large for one request, all of each part.
    """
    gateway, parts = client(url), list(_parts(file, _defaults(kind, model, private)))
    body: dict[str, Any] = {"name": name, "metadata": metadata_of(metadata)}
    if len(parts) > 1:
        made = gateway.request("POST", "/v1/batches", body=body | {"open": True}, headers=_headers(key))
        made = _add(gateway, made["batch_id"], file, parts, key)
        made = made if stay_open else _close(gateway, made["batch_id"])
    else:
        tasks = parts[0].tasks if parts else []
        body |= {"open": stay_open, "tasks": tasks}
        made = gateway.request("POST", "/v1/batches", body=body, headers=_headers(key))
    render.json(made) if as_json else render.line(made["batch_id"])


@app.command()
def add(
    batch_id: str,
    file: File,
    kind: Kind = None,
    model: Model = None,
    private: Private = None,
    key: Key = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Add the tasks of a file to a batch that is open."""
    parts = list(_parts(file, _defaults(kind, model, private)))
    if not parts:
        raise InvalidInput(field=file, problem="has no task")
    _say(_add(client(url), batch_id, file, parts, key), as_json)


@app.command()
def close(batch_id: str, url: Url = None, as_json: Json = False) -> None:
    """Let nothing more be added to a batch: it is completed when all of its tasks have ended."""
    _say(_close(client(url), batch_id), as_json)


@app.command()
def cancel(
    batch_id: str,
    reason: Annotated[str | None, typer.Option(help="Why; kept with the tasks.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the ids of the tasks that are meant.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Close a batch, and cancel those of its tasks that have not ended."""
    body = {"dry_run": dry_run} | ({"reason": reason} if reason else {})
    raise typer.Exit(bulk.run(client(url), f"/v1/batches/{quoted(batch_id)}:cancel", body, as_json=as_json))


@app.command()
def watch(batch_id: str, url: Url = None, as_json: Json = False) -> None:
    """Follow a batch to its completion.

    Ends with 1 if a task failed, expired or is a dead letter, else with 5 if one was cancelled.
    """
    raise typer.Exit(batchwatch.watch(client(url), f"/v1/batches/{quoted(batch_id)}/events", as_json=as_json))


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


def _add(gateway: Client, batch_id: str, file: str, parts: list[Part], key: str | None) -> dict[str, Any]:
    """Add all parts, one after the other; returns the last answer."""
    answer: dict[str, Any] = {}
    for number, part in enumerate(parts):
        headers = _headers(None if key is None else f"{key}/{number}")
        try:
            path = f"/v1/batches/{quoted(batch_id)}/tasks"
            answer = gateway.request("POST", path, body=part.tasks, headers=headers)
        except (ProblemAnswer, BitingLipError):
            render.note(f"{file}: lines {part.first_line} to {part.last_line} and what follows are not in {batch_id}")
            raise
    return answer


def _close(gateway: Client, batch_id: str) -> dict[str, Any]:
    return gateway.request("POST", f"/v1/batches/{quoted(batch_id)}:close")


def _say(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        render.json(answer)
    else:
        render.line(f"{answer['batch_id']}: {answer['state']}, tasks {answer['tasks']}")


def _headers(key: str | None) -> dict[str, str] | None:
    return {"Idempotency-Key": key} if key else None


def _defaults(kind: str | None, model: str | None, private: bool | None) -> dict[str, Any]:
    given = {"kind": kind, "model": model, "private": private}
    return {field: value for field, value in given.items() if value is not None}


def _parts(file: str, defaults: dict[str, Any]) -> Iterator[Part]:
    """Yield the tasks of a file in as few parts as requests can have; none for a file without tasks."""
    tasks, first, last, size = list[dict[str, Any]](), 0, 0, 0
    for number, task in _tasks(file):
        document = defaults | task
        bytes_ = len(orjson.dumps(document)) + 1
        if tasks and (len(tasks) == PART_MOST or size + bytes_ > PART_BYTES):
            yield Part(tasks, first, last)
            tasks, first, size = [], 0, 0
        tasks.append(document)
        first, last, size = first or number, number, size + bytes_
    if tasks:
        yield Part(tasks, first, last)


def _tasks(file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_bytes(file).splitlines(), 1):
        try:
            task: Any = orjson.loads(line) if line.strip() else None
        except orjson.JSONDecodeError as error:
            raise InvalidInput(field=f"{file}:{number}", problem=f"is not JSON: {error}") from error
        if isinstance(task, dict):
            yield number, cast("dict[str, Any]", task)
        elif task is not None:
            raise InvalidInput(field=f"{file}:{number}", problem="is not a JSON object")


def _bytes(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(field=file, problem=error.strerror or str(error)) from error
