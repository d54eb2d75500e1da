"""What is printed: tables and bars on a terminal, plain lines in a pipe, JSON when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

WIDEST = 10_000
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


def note(message: str) -> None:
    """Say something that is not the answer."""
    err.print(escape(message))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: with a frame on a terminal, with tabs in a pipe."""
    if not out.is_terminal:
        for row in [columns, *rows]:
            line("\t".join(cell(value) for value in row))
        return
    drawn = Table(header_style="bold", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column, no_wrap=True)
    for row in rows:
        drawn.add_row(*[_styled(value) for value in row])
    # As wide as its values are: an id that is cut off is of no use.
    natural = Measurement.get(out, out.options.update(width=WIDEST), drawn).maximum
    Console(highlight=False, width=max(out.width, natural)).print(drawn, crop=False)


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
