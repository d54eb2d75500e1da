"""`bitinglip schedule …`: tasks that are submitted again and again."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json, Url, client
from bitinglip.cli.task import Lane, metadata_of, object_of, parameters_of, quoted

app = typer.Typer(
    help="Submit tasks again and again: by a cron expression, or every so many seconds.", no_args_is_help=True
)

COLUMNS = ("schedule_id", "name", "state", "rhythm", "kind", "model", "next_at", "last")


class Overlap(StrEnum):
    """Whether to fire while the task of the time before has not ended."""

    skip = "skip"
    allow = "allow"


class CatchUp(StrEnum):
    """What follows times that were missed."""

    once = "once"
    skip = "skip"


@app.command()
def create(
    kind: Annotated[str, typer.Argument(help="Kind of task; `task kinds` lists them with what they take.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model reference: org/name or org/name@revision.")],
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day, month, day of the week, as '0 3 * * *'.")] = None,
    time_zone: Annotated[str, typer.Option(help="Time zone of --cron, as Europe/Berlin.")] = "UTC",
    every: Annotated[float | None, typer.Option(help="Seconds between two firings.")] = None,
    name: Annotated[str | None, typer.Option(help="A name of your own for it.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, VALUE as JSON or text.")] = None,
    params_json: Annotated[str | None, typer.Option(help="All parameters as a JSON object, or @FILE, or -.")] = None,
    lane: Annotated[Lane, typer.Option(help="How urgent its tasks are.")] = Lane.normal,
    metadata: Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE; may be repeated.")] = None,
    overlap: Annotated[
        Overlap, typer.Option(help="Skip a time while the task before still runs, or not.")
    ] = Overlap.skip,
    catch_up: Annotated[CatchUp, typer.Option(help="After missed times: one task at once, or none.")] = CatchUp.once,
    private: Annotated[
        bool | None, typer.Option("--private/--not-private", help="Keep what is asked and answered out of the log.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Make a schedule, and print its id."""
    task: dict[str, Any] = {"kind": kind, "model": model, "lane": lane.value}
    task |= {"params": object_of(params_json) | parameters_of(param), "metadata": metadata_of(metadata)}
    task |= {"private": private} if private is not None else {}
    body: dict[str, Any] = {"task": task, "overlap": overlap.value, "catch_up": catch_up.value, "time_zone": time_zone}
    given = {"cron": cron, "every_s": every, "name": name}
    body |= {field: value for field, value in given.items() if value is not None}
    made = client(url).request("POST", "/v1/schedules", body=body)
    render.json(made) if as_json else render.line(made["schedule_id"])


@app.command("list")
def list_(url: Url = None, as_json: Json = False) -> None:
    """Print the schedules, the oldest first."""
    found = client(url).get("/v1/schedules")["schedules"]
    if as_json:
        for schedule in found:
            render.json(schedule)
        return
    rows = [_row(schedule) for schedule in found]
    none = "No schedules; `bitinglip schedule create` makes one."
    render.table(COLUMNS, rows, fold=("name", "model", "last"), spare=("kind", "last", "model"), none=none)


@app.command()
def show(schedule_id: str, url: Url = None, as_json: Json = False) -> None:
    """Print a schedule: its next time, and what became of the last one."""
    found = client(url).get(f"/v1/schedules/{quoted(schedule_id)}")
    render.json(found) if as_json else render.pairs(found.items())


@app.command()
def pause(schedule_id: str, url: Url = None, as_json: Json = False) -> None:
    """Let a schedule fire no more for now."""
    _change("POST", f"{quoted(schedule_id)}/pause", url, as_json)


@app.command()
def resume(schedule_id: str, url: Url = None, as_json: Json = False) -> None:
    """Let a paused schedule fire again, from its next time on."""
    _change("POST", f"{quoted(schedule_id)}/resume", url, as_json)


@app.command()
def delete(schedule_id: str, url: Url = None, as_json: Json = False) -> None:
    """Delete a schedule; the tasks that it submitted stay."""
    _change("DELETE", quoted(schedule_id), url, as_json)


def _change(method: str, path: str, url: str | None, as_json: bool) -> None:
    answer = client(url).request(method, f"/v1/schedules/{path}")
    render.json(answer) if as_json else render.line(f"{answer['schedule_id']} {answer['state']}")


def _row(schedule: dict[str, Any]) -> list[Any]:
    rhythm = schedule["cron"] or f"every {schedule['every_s']:g} s"
    shown = schedule | schedule["task"] | {"rhythm": rhythm, "name": schedule["name"]}
    shown |= {"next_at": render.ago(schedule["next_at"])}
    shown |= {"last": schedule["last"] and schedule["last"]["outcome"]}
    return [shown.get(column) for column in COLUMNS]
