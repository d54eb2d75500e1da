"""The command `bitinglip`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from bitinglip import __version__
from bitinglip.cli import (
    archive,
    artifact,
    audit,
    backup,
    batch,
    cluster,
    config,
    doctor,
    eventreplay,
    events,
    eventschema,
    machines,
    model,
    projections,
    query,
    queue,
    render,
    report,
    schedule,
    task,
    timeline,
    upload,
)
from bitinglip.cli.client import ProblemAnswer
from bitinglip.errors import BitingLipError

INTERRUPTED = 130

app = typer.Typer(
    name="bitinglip",
    help="One inference cluster out of the GPUs you have.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(cluster.up)
app.command()(cluster.gateway)
app.add_typer(machines.node_app, name="node")
app.add_typer(machines.worker_app, name="worker")
app.add_typer(machines.cluster_app, name="cluster")
model.app.command()(upload.upload)
app.add_typer(model.app, name="model")
task.app.command("timeline")(timeline.timeline)
app.add_typer(task.app, name="task")
app.add_typer(batch.app, name="batch")
app.add_typer(queue.app, name="queue")
app.add_typer(schedule.app, name="schedule")
app.add_typer(artifact.app, name="artifact")
events.app.command()(archive.archive)
events.app.command()(backup.backup)
events.app.command()(backup.restore)
events.app.command()(eventschema.schema)
events.app.command()(eventreplay.replay)
app.add_typer(events.app, name="events")
app.add_typer(audit.app, name="audit")
app.add_typer(projections.app, name="projections")
app.add_typer(query.app, name="query")
app.add_typer(report.app, name="report")
app.add_typer(config.app, name="config")
app.command()(doctor.doctor)


def _version(wanted: bool) -> None:
    if wanted:
        render.line(f"bitinglip {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """One inference cluster out of the GPUs you have."""


def main() -> None:
    """Run the command line; errors become a line, a remedy and an exit code."""
    try:
        app()
    except (BitingLipError, ProblemAnswer) as error:
        render.note(f"error: {error}")
        if error.remedy:
            render.note(f"remedy: {error.remedy}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
