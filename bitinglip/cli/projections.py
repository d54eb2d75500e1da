"""`bitinglip projections …`: the tables of the read model: how far they are, making them anew, storing copies."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json, Url, client

app = typer.Typer(help="Look at the read model's projections; make them anew; store copies.", no_args_is_help=True)

COLUMNS = ("projection", "version", "state", "rows", "checkpoint")


@app.command("list")
def list_(url: Url = None, as_json: Json = False) -> None:
    """Print the projections: what serves, and what is being made."""
    _show(client(url).get("/v1/projections")["projections"], as_json=as_json)


@app.command()
def rebuild(
    projection: Annotated[str | None, typer.Argument(help="Only this one, in the background; else all.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make the read model anew from the log, or one of its projections; what was there serves until then."""
    body = {} if projection is None else {"projection": projection}
    answer = client(url).request("POST", "/v1/projections/rebuild", body=body)
    if projection is not None:
        _show(answer["projections"], as_json=as_json)
    elif as_json:
        render.json(answer)
    else:
        render.line(f"made anew in {answer['elapsed_ms'] / 1000:.1f} s")


@app.command()
def snapshot(url: Url = None, as_json: Json = False) -> None:
    """Store a copy of the read model now: a gateway that starts begins with it."""
    made = client(url).request("POST", "/v1/projections/snapshot")
    render.json(made) if as_json else render.line(f"{made['file']}: {made['size_bytes']} bytes")


def _show(found: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for projection in found:
            render.json(projection)
        return
    render.table(COLUMNS, [_row(projection) for projection in found], fold=("rows", "checkpoint"))


def _row(projection: dict[str, Any]) -> list[Any]:
    rows = ", ".join(f"{table} {count}" for table, count in projection["rows"].items())
    return [projection["projection"], projection["version"], _state(projection), rows, _checkpoint(projection)]


def _state(projection: dict[str, Any]) -> str:
    return projection["state"] if projection["current"] else f"{projection['state']} (older)"


def _checkpoint(projection: dict[str, Any]) -> str:
    target = projection["target"]
    done = {stream: f"{at} of {target[stream]}" for stream, at in projection["checkpoint"].items()}
    return ", ".join(
        f"{stream} {told if projection['state'] == 'building' else projection['checkpoint'][stream]}"
        for stream, told in done.items()
    )
