"""Following one batch to its completion: a bar and the counts, plain lines in a pipe."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bitinglip.cli import render
from bitinglip.cli.client import Client

CANCELLED, FAILED = 5, 1
COMPLETED = "batch.completed"
ORDER = ("scheduled", "queued", "running", "succeeded", "failed", "dead_lettered", "expired", "cancelled")


def watch(gateway: Client, path: str, *, as_json: bool) -> int:
    """Follow a batch; prints how its tasks ended, and returns the exit code that tells it."""
    shown = _Json() if as_json else Bar() if render.err.is_terminal else _Lines()
    counts: dict[str, int] = {}
    try:
        for event in gateway.events(path, ended=lambda event: event.type == COMPLETED):
            if event.type == COMPLETED:
                counts = event.data["data"]["counts"]
            shown.show(event.type, event.data)
    finally:
        shown.close()
    if not as_json:
        render.line(told(counts) or "no task")
    return exit_code_of(counts)


def exit_code_of(counts: dict[str, int]) -> int:
    """Return 0 if all succeeded, 5 if the others were cancelled, 1 if one ended in another way."""
    others = {state for state, count in counts.items() if count} - {"succeeded"}
    return FAILED if others - {"cancelled"} else CANCELLED if others else 0


def told(counts: dict[str, int]) -> str:
    """Return the counts on one line, in the order of a task's life."""
    return ", ".join(f"{state.replace('_', ' ')} {counts[state]}" for state in ORDER if counts.get(state))


class _Lines:
    """Shows a line whenever the counts have changed."""

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Print how far it is."""
        if kind != COMPLETED:
            render.note(f"{data['done']}/{data['tasks']} {told(data['counts'])}".rstrip())

    def close(self) -> None:
        """End the display."""


class _Json(_Lines):
    """Shows each event as a JSON line."""

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Print the event."""
        render.json(data)


class Bar(_Lines):
    """Shows a bar, with the counts behind it."""

    def __init__(self) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(*columns, console=render.err, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, kind: str, data: dict[str, Any]) -> None:
        """Draw how far it is."""
        if kind != COMPLETED:
            opened = "open, " if data["state"] == "open" else ""
            described = opened + told(data["counts"])
            self._bar.update(self._task, completed=data["done"], total=data["tasks"], description=described)

    def draw(self) -> None:
        """Draw it now, without waiting for its turn."""
        self._bar.refresh()

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()
