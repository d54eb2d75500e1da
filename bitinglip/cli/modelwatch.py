"""Following a model on its way to nodes: a bar for each on a terminal, a line a tenth in a pipe.

What is followed goes on without us: Ctrl-C ends the watching alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from bitinglip.cli import render
from bitinglip.cli.client import Client, ServerEvent

FAILED, STOPPED, INTERRUPTED = 1, 5, 130
WAITING = "model.waiting"
"""What a gateway tells a task's readers of the model that it waits for; it is in no log."""
UNITS = (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def follow(gateway: Client, answer: dict[str, Any], *, as_json: bool) -> int:
    """Follow what was asked for until each of its nodes has it, or does not get it; returns the exit code."""
    known = {} if answer["revision"] is None else _known(gateway, answer["model"])
    after = answer.get("sequence") or max((holding["sequence"] for holding in known.values()), default=0)
    outcomes = Outcomes(answer["nodes"], known)
    followed = frozenset(outcomes.pending)
    shown = _Json() if as_json else _Bars() if render.err.is_terminal else _Lines()
    try:
        if followed:
            path = answer["links"]["events"]
            for event in gateway.events(path, {"after": after}, ended=outcomes.take):
                shown.show(event, followed)
    except KeyboardInterrupt:
        shown.close()
        render.note(f"It goes on without you. To stop it: bitinglip model cancel {answer['model']}")
        return INTERRUPTED
    shown.close()
    return _end(answer["model"], answer["nodes"], outcomes, as_json=as_json)


def size(count: int | None) -> str | None:
    """Write a number of bytes for people."""
    if count is None:
        return None
    unit = next(((name, least) for name, least in UNITS if count >= least), None)
    return f"{count} B" if unit is None else f"{count / unit[1]:.3g} {unit[0]}"


class Outcomes:
    """What has become of the nodes that are followed."""

    def __init__(self, nodes: Iterable[str], known: Mapping[str, Mapping[str, Any]]) -> None:
        """`known`: how it is on the nodes now, which may be more than what it was when it was asked for."""
        self.pending = set(nodes)
        self.failed: dict[str, str] = {}
        """Why it could not be brought to a node."""
        self.stopped: set[str] = set()
        for node_id, holding in known.items():
            match holding["status"]:
                case "stored":
                    self.pending.discard(node_id)
                case "failed" if holding["retry_at"] is None:
                    self._fail(node_id, holding["problem"], holding["remedy"])
                case "stopped" | "removing" | "absent":
                    self._stop([node_id])
                case _:
                    pass

    def take(self, event: ServerEvent) -> bool:
        """Take an event; true when nothing more is to come."""
        data = event.data["data"]
        match event.type:
            case "model.stored":
                self.pending.discard(data["node_id"])
            case "model.fetch_failed" if data.get("retry_in_s") is None:
                self._fail(data["node_id"], data["message"], data.get("remedy"))
            case "model.fetch_cancelled" | "model.removal_asked":
                self._stop(data["nodes"])
            case _:
                pass
        return not self.pending

    def _fail(self, node_id: str, *why: str | None) -> None:
        if node_id in self.pending:
            self.pending.discard(node_id)
            self.failed[node_id] = " ".join(filter(None, why))

    def _stop(self, nodes: Iterable[str]) -> None:
        self.stopped |= self.pending & set(nodes)
        self.pending -= set(nodes)


class _Lines:
    """Shows a line for each event, and for each tenth of what has to come."""

    def __init__(self) -> None:
        self._tenths: dict[str, int] = {}

    def show(self, event: ServerEvent, nodes: Collection[str | None]) -> None:
        """Print the event, if it is news."""
        data = event.data["data"]
        if event.type != "model.fetch_progressed":
            render.note(describe(event))
        elif data["node_id"] in nodes and self._is_news(data):
            render.note(f"{data['node_id']}: {how_far(data)}")

    def close(self) -> None:
        """End the display."""

    def _is_news(self, data: dict[str, Any]) -> bool:
        tenth = 10 * data["done_bytes"] // max(1, data["total_bytes"])
        told = self._tenths.get(data["node_id"])
        self._tenths[data["node_id"]] = tenth
        return tenth != told


class _Json(_Lines):
    """Shows each event as a JSON line."""

    def show(self, event: ServerEvent, nodes: Collection[str | None]) -> None:
        """Print the event."""
        render.json(event.data)


class _Bars(_Lines):
    """Shows a bar for each node."""

    def __init__(self) -> None:
        super().__init__()
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[pace]}"))
        self._progress = Progress(*columns, console=render.err, transient=True)
        self._bars: dict[str, TaskID] = {}
        self._progress.start()

    def show(self, event: ServerEvent, nodes: Collection[str | None]) -> None:
        """Draw the event."""
        data = event.data["data"]
        if event.type == "model.fetch_progressed":
            self._draw(data)
        elif event.type in {"model.fetch_failed", "model.stored", "model.fetch_stopped"}:
            self._progress.print(describe(event), markup=False)

    def close(self) -> None:
        """Leave the screen as a line's beginning."""
        self._progress.stop()

    def _draw(self, data: dict[str, Any]) -> None:
        node_id = data["node_id"]
        if node_id not in self._bars:
            self._bars[node_id] = self._progress.add_task(node_id, total=data["total_bytes"], pace="")
        self._progress.update(
            self._bars[node_id], completed=data["done_bytes"], total=data["total_bytes"], pace=pace(data)
        )


class Awaited:
    """Shows how the model comes along that a task waits for."""

    def __init__(self) -> None:
        self._shown: _Lines | None = None

    def show(self, event: ServerEvent) -> bool:
        """Show an event of the task's stream; false if it is the task's own."""
        if not event.type.startswith("model."):
            if self._shown is not None and event.type != "task.submitted":
                self._shown.close()
                self._shown = None
            return False
        data = event.data["data"]
        if event.type == WAITING:
            told = [f"waits for {data['model']}: {data['status']}", data["problem"], data["remedy"]]
            render.note("; ".join(filter(None, told)))
            return True
        if self._shown is None:
            self._shown = _Bars() if render.err.is_terminal else _Lines()
        self._shown.show(event, {data.get("node_id")})
        return True


def how_far(data: dict[str, Any]) -> str:
    """Write how far a node has come."""
    told = f"{size(data['done_bytes'])} of {size(data['total_bytes'])}"
    return ", ".join(filter(None, [told, pace(data)]))


def pace(data: dict[str, Any]) -> str:
    """Write how fast a model comes, and how long it will take."""
    if data.get("step") == "checking":
        return "checking"
    rate, left = data.get("bytes_per_s"), data.get("left_s")
    told = [f"{size(round(rate))}/s" if rate else "", f"{render.distance(left)} left" if left is not None else ""]
    return ", ".join(filter(None, told))


def describe(event: ServerEvent) -> str:
    """Write an event on one line."""
    data = event.data["data"]
    told = event.type.removeprefix("model.").replace("_", " ")
    where = data.get("node_id") or ", ".join(data.get("nodes") or [])
    again = data.get("retry_in_s")
    more = [
        data.get("message") or data.get("problem"),
        f"again {render.distance(-again)}" if again is not None else None,
        size(data.get("missing_bytes") or data.get("size_bytes")),
    ]
    return ": ".join(filter(None, [where, told])) + "".join(f"; {each}" for each in more if each)


def _known(gateway: Client, model: str) -> dict[str, dict[str, Any]]:
    """Return how a model is on the nodes now, by their names."""
    return {holding["node_id"]: holding for holding in gateway.get(f"/v1/models/{model}")["holdings"]}


def _end(model: str, nodes: list[str], outcomes: Outcomes, *, as_json: bool) -> int:
    for node_id, why in sorted(outcomes.failed.items()):
        render.note(f"error: {node_id}: {why}")
    if outcomes.failed:
        return FAILED
    if outcomes.stopped:
        render.note(f"stopped on {', '.join(sorted(outcomes.stopped))}")
        return STOPPED
    if not as_json:
        render.line(f"{model} is on {', '.join(nodes)}")
    return 0
