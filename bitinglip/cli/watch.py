"""Following one task to its end: text as it comes, a bar for steps, plain lines in a pipe, then the result.

What a model thinks before it answers is shown dimmed on a terminal, and not at all in a pipe.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bitinglip.cli import render
from bitinglip.cli.artifact import artifacts_in, save_all
from bitinglip.cli.client import Client, ServerEvent
from bitinglip.cli.modelwatch import Awaited

EXIT_CODES = {"succeeded": 0, "cancelled": 5}
FAILED = 1
UNTOLD = {"sha256", "media_type", "size_bytes"}
ENDS = {
    "task.succeeded": "succeeded",
    "task.cancelled": "cancelled",
    "task.expired": "expired",
    "task.dead_lettered": "dead_lettered",
}


def watch(gateway: Client, task_id: str, *, quiet: bool, as_json: bool, out: Path | None = None) -> int:
    """Follow a task; prints its result, and returns the exit code that tells how it ended.

    `out`: folder for the files of the result.
    """
    shown = (
        _Json() if as_json and not quiet else _Quiet() if quiet else _Screen() if render.out.is_terminal else _Lines()
    )
    state = "unknown"
    awaited = Awaited() if not quiet and not as_json else None
    for event in gateway.events(f"/v1/tasks/{task_id}/events", ended=lambda event: end_of(event) is not None):
        if awaited is not None and awaited.show(event):
            continue
        shown.show(event)
        state = end_of(event) or state
    shown.close()
    if quiet or not as_json or out is not None:
        task = gateway.get(f"/v1/tasks/{task_id}")
        if quiet or not as_json:
            _print_outcome(task, shown, as_json=as_json)
        if out is not None:
            for path in save_all(gateway, task, out):
                render.note(f"wrote {path}")
    return exit_code_of(state)


def exit_code_of(state: str) -> int:
    """Return 0 for a success, 5 for a cancelled task, 1 for every other end."""
    return EXIT_CODES.get(state, FAILED)


def end_of(event: ServerEvent) -> str | None:
    """Return the state in which this event ends its task; none if it does not."""
    if event.type == "task.failed" and event.data["data"].get("retry_at") is None:
        return "failed"
    return ENDS.get(event.type)


class _Quiet:
    """Shows nothing."""

    text_shown = False
    thought_shown = False

    def show(self, event: ServerEvent) -> None:
        """Take an event."""

    def close(self) -> None:
        """End the display."""


class _Json(_Quiet):
    """Shows each event as a JSON line."""

    def show(self, event: ServerEvent) -> None:
        """Print the event."""
        render.json(event.data)


class _Lines(_Quiet):
    """Shows a line for each event, but for pieces of text: the result has them all."""

    def show(self, event: ServerEvent) -> None:
        """Print the event."""
        data = event.data["data"]
        if event.type == "task.progressed":
            if data.get("text") is None and data.get("reasoning") is None:
                render.note(f"{data['step']}/{data.get('total') or '?'} {data.get('unit', 'step')}")
            return
        render.note(_describe(event.type, data))


class _Screen(_Quiet):
    """Shows text as it comes, or a bar."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def show(self, event: ServerEvent) -> None:
        """Draw the event."""
        data = event.data["data"]
        if event.type != "task.progressed":
            if self._said or self._bar is not None:
                return
            render.note(_describe(event.type, data))
        elif data.get("reasoning") is not None or data.get("text") is not None:
            self._say(data.get("reasoning"), data.get("text"))
        elif not self._said:
            self._draw(data)

    def close(self) -> None:
        """Leave the screen as a line's beginning."""
        self._stop_bar()
        if self._said:
            render.text("\n")

    @property
    def _said(self) -> bool:
        return self.text_shown or self.thought_shown

    def _say(self, thought: str | None, text: str | None) -> None:
        self._stop_bar()
        if thought is not None:
            self.thought_shown = True
            render.dim(thought)
        if text is not None:
            if self.thought_shown and not self.text_shown:
                render.text("\n\n")
            self.text_shown = True
            render.text(text)

    def _draw(self, data: dict[str, Any]) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=render.err, transient=True)
            self._bar.start()
            self._task = self._bar.add_task(data.get("unit", "step"), total=data.get("total"))
        assert self._task is not None
        self._bar.update(self._task, completed=data["step"], total=data.get("total"))

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _describe(kind: str, data: dict[str, Any]) -> str:
    told = kind.removeprefix("task.").replace("_", " ")
    if kind == "task.assigned":
        return f"{told} to {data['worker_id']} (attempt {data['attempt']})"
    if data.get("reason") == "bigger_card":
        return f"{told} for a bigger card"
    if "failure" in data:
        again = f"; again at {data['retry_at']}" if data.get("retry_at") else ""
        again += f", on a card of at least {data['next_vram_gb']:g} GiB" if data.get("next_vram_gb") else ""
        return f"{told}: {data['failure']['message']}{again}"
    return told


def _print_outcome(task: dict[str, Any], shown: _Quiet, *, as_json: bool) -> None:
    if as_json:
        render.json(task)
    elif task["state"] != "succeeded":
        why = (task.get("failure") or {}).get("message")
        render.note(f"{task['task_id']} {task['state']}" + (f": {why}" if why else ""))
    elif not shown.text_shown:
        _print_result(task, thought_shown=shown.thought_shown)


def _print_result(task: dict[str, Any], *, thought_shown: bool) -> None:
    result = task.get("result")
    if result is None:
        reference = task.get("result_ref") or {}
        render.line(f"/v1/artifacts/{reference.get('sha256')} ({reference.get('size_bytes')} bytes)")
    elif isinstance(result.get("text"), str):
        if result.get("reasoning") and render.out.is_terminal and not thought_shown:
            render.dim(result["reasoning"] + "\n\n")
        render.line(result["text"])
    elif parts := list(artifacts_in(result)):
        for part in parts:
            told = ", ".join(f"{name} {value}" for name, value in part.items() if name not in UNTOLD)
            render.line(f"/v1/artifacts/{part['sha256']} ({part['media_type']}, {part['size_bytes']} bytes; {told})")
    else:
        render.json(result)
