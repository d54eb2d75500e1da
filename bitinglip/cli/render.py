"""What is printed: tables and bars on a terminal, plain lines in a pipe, JSON when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

GAP = 2
"""Blanks between two columns."""
FOLDED_LEAST = 16
"""A column is folded to no less than this."""
UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
STATE_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "failed": "red",
    "dead_lettered": "red",
    "cancelled": "yellow",
    "expired": "yellow",
}


def json(document: Any) -> None:
    """Print a JSON document on one line."""
    sys.stdout.write(orjson.dumps(document, default=str).decode() + "\n")
    sys.stdout.flush()


def line(text: str) -> None:
    """Print a line as it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def text(piece: str) -> None:
    """Print a piece of text at once, without a line's end."""
    sys.stdout.write(piece)
    sys.stdout.flush()


def dim(piece: str) -> None:
    """Print a piece of text that is not the answer itself, paler than what is; for a terminal."""
    out.print(Text(piece, style="dim"), end="")


def styled(shown: Text) -> None:
    """Print a line with its colours on a terminal, and without them in a pipe."""
    out.print(shown) if out.is_terminal else line(shown.plain.rstrip())


def note(message: str) -> None:
    """Say something that is not the answer."""
    err.print(escape(message))


def as_of(answer: Mapping[str, Any]) -> str | None:
    """Say of which moment an answer is, and return its time; nothing and none, if it is of now."""
    told = answer.get("as_of")
    if told is None:
        return None
    note(f"as of {told['time'][:19].replace('T', ' ')} UTC, event {told['sequence']} of TASKS")
    return str(told["time"])


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    fold: Sequence[str] = (),
    spare: Sequence[str] = (),
    none: str | None = None,
) -> None:
    """Print a table: drawn on a terminal (`none` instead, if it has no row), with tabs and whole values in a pipe.

    On a terminal that is too narrow, what stands in the columns of `fold` goes on in further lines, and those of
    `spare` are left out, the first of them first. All others stay whole: an id that is cut off is of no use.
    """
    found = [list(row) for row in rows]
    if not out.is_terminal:
        for row in [columns, *found]:
            line("\t".join(cell(value) for value in row))
    elif not found and none is not None:
        line(none)
    else:
        _draw([Column(name, [row[at] for row in found], name in fold) for at, name in enumerate(columns)], spare)


@dataclass(frozen=True)
class Column:
    """A column of a table on a terminal."""

    name: str
    values: list[Any]
    folds: bool = False

    @property
    def natural(self) -> int:
        """Its width with every value on one line."""
        return max(cell_len(cell(value)) for value in [self.name, *self.values])

    @property
    def least(self) -> int:
        """The width that it can do with."""
        return min(self.natural, FOLDED_LEAST) if self.folds else self.natural

    @property
    def justify(self) -> Literal["left", "right"]:
        """Numbers stand under each other."""
        told = [value for value in self.values if value is not None]
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in told]
        return "right" if told and all(numbers) else "left"


def fitted(columns: Sequence[Column], spare: Sequence[str], room: int) -> list[tuple[Column, int]]:
    """Return the columns that are shown in this room, and how wide; columns that may fold without a value are not."""
    kept = [column for column in columns if not column.folds or not column.values or any(map(_told, column.values))]
    for name in spare:
        if sum(column.least + GAP for column in kept) - GAP > room:
            kept = [column for column in kept if column.name != name]
    widths = [column.natural for column in kept]
    while sum(widths) + GAP * (len(kept) - 1) > room:
        foldable = [at for at, column in enumerate(kept) if widths[at] > column.least]
        if not foldable:
            break
        widths[max(foldable, key=widths.__getitem__)] -= 1
    return list(zip(kept, widths, strict=True))


def _draw(columns: Sequence[Column], spare: Sequence[str]) -> None:
    shown = fitted(columns, spare, out.width)
    drawn = Table(header_style="bold", box=None, pad_edge=False)
    for column, width in shown:
        drawn.add_column(column.name, width=width, overflow="fold", justify=column.justify)
    for row in zip(*[column.values for column, _ in shown], strict=True):
        drawn.add_row(*[_styled(value) for value in row])
    # Wider than the terminal, if that cannot be: rich would squeeze all of them.
    Console(highlight=False, width=max(out.width, sum(width + GAP for _, width in shown))).print(drawn, crop=False)
    names = {column.name for column, _ in shown}
    left_out = [each.name for each in columns if each.name not in names and any(map(_told, each.values))]
    if left_out:
        dim(f"left out: {', '.join(left_out)}; a wider terminal or --json has them\n")


def moment(time: str | None) -> str | None:
    """Write a time for people: to the second on a terminal, as it is in a pipe."""
    return time[:19].replace("T", " ") if time and out.is_terminal else time


def ago(time: str | None, moment: str | None = None) -> str | None:
    """Write a time as its distance from now, by this machine's clock, on a terminal; as it is in a pipe.

    `moment`: the time to count from instead of now.
    """
    if time is None or not out.is_terminal:
        return time
    since = datetime.now(UTC) if moment is None else datetime.fromisoformat(moment)
    return distance((since - datetime.fromisoformat(time)).total_seconds())


def distance(seconds: float) -> str:
    """Write how long something is past, or, below 0, to come."""
    whole = round(abs(seconds))
    unit, size = next((unit, size) for unit, size in UNITS if whole >= size or size == 1)
    return f"{'in ' if round(seconds) < 0 else ''}{whole // size} {unit}"


def pairs(rows: Iterable[tuple[str, Any]]) -> None:
    """Print names and values, one a line; those without a value are left out."""
    shown = [(name, value) for name, value in rows if value not in (None, "", {}, [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        line(f"{name:<{width}}  {cell(value)}")


def cell(value: Any) -> str:
    """Write one value on one line."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value.replace("\n", "\\n").replace("\t", "\\t")
    if isinstance(value, float):
        return f"{value:.6g}"
    return orjson.dumps(value, default=str).decode() if isinstance(value, dict | list) else str(value)


def _styled(value: Any) -> str:
    shown = escape(cell(value))
    style = STATE_STYLES.get(value) if isinstance(value, str) else None
    return f"[{style}]{shown}[/]" if style else shown


def _told(value: Any) -> bool:
    return value is not None
