"""`bitinglip events …`: the log as it is written, and as a file."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.client import ServerEvent
from bitinglip.cli.options import Json, Url, client

app = typer.Typer(help="The event log as it is written, and as a file.", no_args_is_help=True)


class Stream(StrEnum):
    """Which facts."""

    tasks = "tasks"
    workers = "workers"
    models = "models"
    schedules = "schedules"
    ledger = "ledger"


StreamOption = Annotated[Stream, typer.Option(help="Which facts.")]
TypesOption = Annotated[list[str] | None, typer.Option("--type", help="Only this type of event; may be repeated.")]


@app.command()
def tail(
    stream: StreamOption = Stream.tasks,
    types: TypesOption = None,
    task: Annotated[str | None, typer.Option(help="Only this task's events.")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Begin after this sequence.")] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with the first event.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print events as they are written, until Ctrl-C."""
    params = _params(stream, types, task, 0 if from_start else after)
    for event in client(url).events("/v1/events", params):
        if as_json:
            render.json(event.data)
        else:
            render.line(one_line(event))


@app.command()
def export(
    stream: StreamOption = Stream.tasks,
    types: TypesOption = None,
    after: Annotated[int, typer.Option(min=0, help="Begin after this sequence.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; none: standard output.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Write the events so far as JSON lines: CloudEvents, one a line."""
    params = _params(stream, types, None, after) | {"follow": "false"}
    count = 0
    with output.open("wb") if output else nullcontext(sys.stdout.buffer) as file:
        for event in client(url).events("/v1/events", params):
            file.write(orjson.dumps(event.data) + b"\n")
            count += 1
        file.flush()
    if output:
        render.json({"file": str(output), "events": count}) if as_json else render.note(f"{count} events in {output}")


def _params(stream: Stream, types: list[str] | None, task: str | None, after: int | None) -> dict[str, Any]:
    return {
        "stream": stream.value,
        "types": ",".join(types) if types else None,
        "task_id": task,
        "after": after,
    }


def one_line(event: ServerEvent) -> str:
    """Return an event as one line: its sequence, the clock as it was, its type, what it is about and what it says."""
    document = event.data
    details = {name: value for name, value in document["data"].items() if name not in {"task_id", "worker_id"}}
    shown = " ".join(f"{name}={render.cell(value)}" for name, value in details.items() if value not in (None, {}, ""))
    return f"{event.id:>8} {document['time'][11:23]} {event.type:<22} {document['subject']} {shown}"[:400]
