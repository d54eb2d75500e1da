"""`bitinglip task timeline`: a task's life, drawn as bars of text under each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from rich.text import Text

from bitinglip.cli import render
from bitinglip.cli.options import AsOf, Json, Url, client

LABEL, TOOK, GAP = 11, 8, 2
BAR_LEAST, BAR_MOST = 16, 80
TOLD_LEAST = 24
"""Columns that what is said beside a bar gets, before the bar gets more."""
MARKS = {"scheduled": "·", "dependent": "·", "waiting": "░", "loading": "▒", "running": "█", "pause": "·", "fetch": "▁"}
STYLES = {"waiting": "yellow", "loading": "magenta", "running": "cyan", "fetch": "blue"}
TICK = "╵"


def timeline(task_id: str, as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """Draw a task's life: how long it waited, loaded and ran, attempt by attempt, and what ended it."""
    told = client(url).get(f"/v1/tasks/{quote(task_id, safe='')}/timeline", {"as_of": as_of})
    if as_json:
        render.json(told)
        return
    for line in drawn(told, render.out.width if render.out.is_terminal else 100):
        render.styled(line)


@dataclass(frozen=True, slots=True)
class Row:
    """One bar: from where to where, in milliseconds from the submission, and what is said of it."""

    label: str
    kind: str
    start: float
    end: float
    told: str = ""
    failed: bool = False


def drawn(told: dict[str, Any], width: int) -> Iterator[Text]:
    """Yield the lines that show a timeline, none wider than the width but what cannot be folded."""
    whole = max(told["ms"], 0.001)
    rows = list(_rows(told))
    room = width - LABEL - TOOK - 2 * GAP
    bar = max(BAR_LEAST, min(BAR_MOST, room - max(TOLD_LEAST, min(room // 2, _widest(rows)))))
    yield Text(f"{told['task_id']}  {told['kind']}  {told['model']}  {told['lane']}")
    yield Text(_summary(told), style=render.STATE_STYLES.get(told["state"], ""))
    yield Text(f"{'':{LABEL + GAP}}{_scale(whole, bar)}", style="dim")
    for row in rows:
        yield _line(row, whole, bar, width)
    if (marks := _ticks(told, whole, bar)) is not None:
        marks.truncate(width, overflow="ellipsis")
        yield marks
    if (end := told["end"]) is not None:
        yield Text(f"ended: {_ended(end)}")


def _rows(told: dict[str, Any]) -> Iterator[Row]:
    begin = datetime.fromisoformat(told["submitted_at"])
    for span in told["spans"]:
        start = _ms(begin, span["start"])
        failed = span["outcome"] not in {None, "succeeded", "cancelled"}
        yield Row(_label(span), span["kind"], start, start + span["ms"], _said(span), failed)
    for fetch in told["fetches"]:
        end = _ms(begin, fetch["end"]) if fetch["end"] else told["ms"]
        said = f"{fetch['node_id']} {fetch['outcome'] or 'on its way'}, {fetch['bytes'] / 1e6:,.0f} MB"
        yield Row("fetch", "fetch", max(0.0, _ms(begin, fetch["start"])), min(end, told["ms"]), said)


def _line(row: Row, whole: float, bar: int, width: int) -> Text:
    at = min(int(row.start / whole * bar), bar - 1)
    size = max(1, min(round(row.end / whole * bar), bar) - at)
    line = Text(f"{row.label:<{LABEL}}{'':{GAP}}")
    line.append(" " * at)
    line.append(MARKS[row.kind] * size, style="red" if row.failed else STYLES.get(row.kind, "dim"))
    line.append(" " * (bar - at - size))
    line.append(f"{'':{GAP}}{duration(row.end - row.start):>{TOOK}}")
    left = width - line.cell_len - GAP
    if row.told and left > 1:
        said = row.told if len(row.told) <= left else f"{row.told[: left - 1]}…"
        line.append(f"{'':{GAP}}{said}", style="red" if row.failed else "")
    return line


def _ticks(told: dict[str, Any], whole: float, bar: int) -> Text | None:
    sample = told["ticks"]["sample"]
    if not sample:
        return None
    begin, last = datetime.fromisoformat(told["submitted_at"]), sample[-1]
    places = {max(0, min(int(_ms(begin, tick["at"]) / whole * bar), bar - 1)) for tick in sample}
    marks = "".join(TICK if place in places else " " for place in range(bar))
    reached = f"{last['step']}/{last['total']}" if last["total"] else str(last["step"])
    count = f"{told['ticks']['count']:>{TOOK}}"
    return Text(f"{'progress':<{LABEL}}{'':{GAP}}{marks}{'':{GAP}}{count}{'':{GAP}}{reached} {last['unit']}")


def _label(span: dict[str, Any]) -> str:
    return f"{span['attempt']} {span['kind']}" if span["worker_id"] is not None else span["kind"]


def _said(span: dict[str, Any]) -> str:
    where = " ".join(each for each in (span["worker_id"], span["device"]) if each)
    parts = [where]
    parts += [f"in a batch of {span['batch_size']}"] if (span["batch_size"] or 1) > 1 else []
    parts += [span["reason"].replace("_", " ")] if span["reason"] else []
    parts += [": ".join(filter(None, (span["outcome"], span["problem"])))] if span["outcome"] else []
    parts += [f"until {span['due_at'][:19].replace('T', ' ')}"] if span["due_at"] and span["end"] is None else []
    parts += ["goes on"] if span["end"] is None and not span["due_at"] else []
    return ", ".join(part.replace("\n", " ") for part in parts if part)


def _summary(told: dict[str, Any]) -> str:
    state, took = told["state"], duration(told["ms"])
    since = f"submitted {told['submitted_at'][:19].replace('T', ' ')} UTC"
    stopping = ", asked to stop" if told["cancel_requested_at"] and told["end"] is None else ""
    return f"{state} {'after' if told['end'] else 'for now, after'} {took}{stopping}  ({since})"


def _ended(end: dict[str, Any]) -> str:
    failure = end["failure"] or {}
    why = [failure.get("kind"), failure.get("message"), end["reason"], f"by {end['by']}" if end["by"] else None]
    return ": ".join([end["state"], *[str(each) for each in why if each]])


def _scale(whole: float, bar: int) -> str:
    return f"0{duration(whole):>{bar - 1}}"


def _widest(rows: list[Row]) -> int:
    return max((len(row.told) for row in rows), default=0) + GAP


def _ms(begin: datetime, at: str) -> float:
    return (datetime.fromisoformat(at) - begin).total_seconds() * 1_000


def duration(ms: float) -> str:
    """Write how long something took, with three digits at most."""
    if ms < 1_000:
        return f"{ms:.3g} ms" if ms < 999.5 else "1 s"
    seconds = ms / 1_000
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.3g} h"
