"""`bitinglip queue …`: what waits, and for how long; pausing, resuming and emptying the queues of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bitinglip.cli import bulk, render
from bitinglip.cli.options import AsOf, Json, Url, client
from bitinglip.cli.task import Lane
from bitinglip.errors import InvalidInput

app = typer.Typer(help="Look at the queues; pause, resume and empty those of a model.", no_args_is_help=True)

COLUMNS = (
    "lane",
    "model",
    "key",
    "requires",
    "waiting",
    "running",
    "oldest_s",
    "rate/s",
    "wait_s",
    "paused",
)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Model reference.")]
OneLane = Annotated[Lane | None, typer.Option("--lane", help="Only this lane; all of them unless given.")]
Reason = Annotated[str | None, typer.Option(help="Why; it is kept in the log.")]


@app.command("list")
def list_(as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """Print the queues: what waits and runs, how long the oldest waits, how long a new task will."""
    answer = client(url).get("/v1/queues", {"as_of": as_of})
    found = answer["queues"]
    if as_json:
        for queue in found:
            render.json(queue)
        return
    then = render.as_of(answer)
    show(found, none="Nothing waited or ran." if then else "No queues: no worker serves a model yet.")


@app.command()
def pause(
    model: ModelName, lane: OneLane = None, reason: Reason = None, url: Url = None, as_json: Json = False
) -> None:
    """Hand out nothing more of what waits for a model; what runs goes on, and tasks can still be submitted."""
    _change("pause", _body(model, lane, reason), url, as_json)


@app.command()
def resume(
    model: ModelName, lane: OneLane = None, reason: Reason = None, url: Url = None, as_json: Json = False
) -> None:
    """Hand out again what waits for a model."""
    _change("resume", _body(model, lane, reason), url, as_json)


@app.command()
def purge(
    model: ModelName,
    lane: OneLane = None,
    reason: Reason = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which tasks are meant.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it: a cancelled task does not come back.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Cancel all that waits for a model, also what waits for its time; what runs goes on."""
    if not (yes or dry_run):
        raise InvalidInput(field="--yes", problem="is missing; --dry-run shows what would be cancelled")
    body = _body(model, lane, reason) | {"dry_run": dry_run}
    raise typer.Exit(bulk.run(client(url), "/v1/queues:purge", body, as_json=as_json))


def _body(model: str, lane: Lane | None, reason: str | None) -> dict[str, Any]:
    return {"model": model, "lane": lane and lane.value, "reason": reason}


def _change(what: str, body: dict[str, Any], url: str | None, as_json: bool) -> None:
    answer = client(url).request("POST", f"/v1/queues:{what}", body=body)
    lanes = ", ".join(answer["paused_lanes"])
    told = f"paused in {lanes}" if lanes else "not paused"
    render.json(answer) if as_json else render.line(f"{answer['model']}: {told}")


def show(queues: list[dict[str, Any]], *, none: str) -> None:
    """Print queues as a table."""
    rows = [_row(queue) for queue in queues]
    render.table(COLUMNS, rows, fold=("model", "key", "requires"), spare=("rate/s", "wait_s"), none=none)


def _row(queue: dict[str, Any]) -> list[Any]:
    shown = queue | {"requires": _requires(queue["requires"]), "paused": "yes" if queue["paused"] else "no"}
    shown |= {"rate/s": queue["rate_per_s"], "wait_s": queue["estimated_wait_s"]}
    return [shown[column] for column in COLUMNS]


def _requires(requires: dict[str, Any] | None) -> str | None:
    """Write it as `--requires` takes it."""
    labels = [("label", label) for label in (requires or {}).get("label", [])]
    rest = [(name, value) for name, value in (requires or {}).items() if name != "label"]
    return ",".join(f"{name}={render.cell(value)}" for name, value in [*rest, *labels]) or None
