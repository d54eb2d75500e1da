"""`bitinglip report …`: what was used, how long it took, what failed, how the models did."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from bitinglip.cli import charts, render
from bitinglip.cli.options import Json, Url, client

app = typer.Typer(help="Reports of a time: tables and charts, or a file of them.", no_args_is_help=True)

Since = Annotated[str | None, typer.Option(help="Beginning: a time, or how long ago, as 24h or 7d (default 7d).")]
Until = Annotated[str | None, typer.Option(help="End: a time, or how long ago; now if not given.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="Only this model.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write into.")]
SPARE = ("audio_ms", "images", "expired", "cancelled", "dead_lettered", "last_task_id", "energy_j", "p90_ms", "failed")


class Format(StrEnum):
    """What is made of a report."""

    table = "table"
    json = "json"
    csv = "csv"
    svg = "svg"
    html = "html"


Form = Annotated[Format, typer.Option("--format", help="What to make of it.")]


@app.command()
def usage(
    since: Since = None,
    until: Until = None,
    by: Annotated[str, typer.Option(help="model, key or kind.")] = "model",
    key: Annotated[str | None, typer.Option(help="Only what this API key used.")] = None,
    model: Model = None,
    format_: Form = Format.table,
    output: Output = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Tasks, time on devices, tokens, images and energy."""
    asked = {"since": since, "until": until, "by": by, "key": key, "model": model}
    _tell("usage", asked, Format.json if as_json else format_, output, url)


@app.command()
def latency(
    since: Since = None,
    until: Until = None,
    by: Annotated[str, typer.Option(help="model, lane or kind.")] = "model",
    model: Model = None,
    format_: Form = Format.table,
    output: Output = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """How long attempts waited, loaded and ran: the quantiles."""
    asked = {"since": since, "until": until, "by": by, "model": model}
    _tell("latency", asked, Format.json if as_json else format_, output, url)


@app.command()
def failures(
    since: Since = None,
    until: Until = None,
    by: Annotated[str, typer.Option(help="failure, model, worker or node.")] = "failure",
    model: Model = None,
    format_: Form = Format.table,
    output: Output = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """What failed, how often, and the last time."""
    asked = {"since": since, "until": until, "by": by, "model": model}
    _tell("failures", asked, Format.json if as_json else format_, output, url)


@app.command()
def models(
    since: Since = None,
    until: Until = None,
    model: Model = None,
    format_: Form = Format.table,
    output: Output = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """The models side by side."""
    asked = {"since": since, "until": until, "model": model}
    _tell("models", asked, Format.json if as_json else format_, output, url)


def _tell(name: str, asked: dict[str, str | None], format_: Format, output: Path | None, url: str | None) -> None:
    given = {field: value for field, value in asked.items() if value is not None}
    gateway, path = client(url), f"/v1/reports/{name}"
    if format_ is Format.table and output is None:
        _print(gateway.get(path, given))
        return
    form = Format.html if format_ is Format.table else format_
    address = f"{path}?{urlencode(given | {'format': form.value})}"
    if output is None:
        gateway.download(address, sys.stdout.buffer)
        sys.stdout.buffer.write(b"\n" if form is Format.json else b"")
        return
    with output.open("wb") as file:
        gateway.download(address, file)


def _print(report: dict[str, Any]) -> None:
    columns: list[str] = report["columns"]
    if render.out.is_terminal:
        span = f"{render.moment(report['since'])} to {render.moment(report['until'])} (UTC)"
        by = "" if report["name"] == "models" else f" by {report['by']}"
        render.line(f"{report['title']}{by}, {span}\n")
    rows = [[_cell(value) for value in row] for row in report["rows"]]
    render.table(columns, rows, fold=("last_message",), spare=SPARE, none="Nothing in this time.")
    if not render.out.is_terminal or not rows:
        return
    for chart in report["charts"]:
        if chart["series"]:
            render.line("\n" + charts.draw(chart, render.out.width - 1, colours=render.out.color_system is not None))


def _cell(value: Any) -> Any:
    return render.moment(value) if isinstance(value, str) and value[10:11] == "T" and value.endswith("Z") else value
