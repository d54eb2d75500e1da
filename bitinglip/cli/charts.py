"""Charts drawn with characters, as wide as the terminal; without colours, each series has a character of its own."""

# plotext comes without types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import re
from typing import Any, cast

import plotext  # pyright: ignore[reportMissingTypeStubs]

HEIGHT = 15
LEAST_WIDTH = 40
FILLS = ("█", "░", "▒", "▚", "▓", "◇", "▞")
POINTS = ("•", "×", "○", "+", "◆", "*", "▲")
"""What is in no label."""
COLOURS = (34, 33, 32, 31, 35, 37, 36)
"""Of each series, as the terminal numbers them."""
BARS_MOST = 20
LABEL_MOST = 28

_figure: Any = plotext.figure
Series = list[tuple[str, list[float | None]]]


def draw(chart: dict[str, Any], width: int, *, colours: bool) -> str:
    """Return a chart of a report as lines; one without numbers is a line that says so."""
    title = f"{chart['title']} ({chart['unit']})"
    series = cast("Series", chart["series"])
    if not series:
        return f"{title}: nothing in this time\n"
    if chart["kind"] == "bars":
        drawn = "\n".join([title, *_bars(chart["labels"], series, width), ""])
        return _coloured(drawn, FILLS) if colours else drawn
    marks = FILLS if chart["kind"] == "stacked" else POINTS
    _figure.clear()
    _figure.plot_size(max(width, LEAST_WIDTH), HEIGHT)
    (_stacked if chart["kind"] == "stacked" else _lines)(series, width)
    _ticks(chart["labels"], max(width, LEAST_WIDTH))
    drawn = cast("str", _figure.build().string(colorless=True))
    legend = "  ".join(f"{_mark(marks, number)} {name}" for number, (name, _) in enumerate(series))
    lines = [title, *(line.rstrip() for line in drawn.rstrip("\n").split("\n")), legend, ""]
    return _coloured("\n".join(lines), marks) if colours else "\n".join(lines)


def _stacked(series: Series, width: int) -> None:
    heights = [[value or 0.0 for value in values] for _, values in series]
    places = list(range(1, len(heights[0]) + 1))
    marks = [_mark(FILLS, number) for number in range(len(series))]
    bar = 1.0 if len(places) * 3 > width else 0.8
    _figure.draw(_figure.bar(places, heights, marker=marks, stacked=True, lines=False, width=bar))
    _figure.ruler("x").lim(0.5, len(places) + 0.5)


def _lines(series: Series, _width: int) -> None:
    for number, (_, values) in enumerate(series):
        told = [(place, value) for place, value in enumerate(values, 1) if value is not None]
        _figure.draw(_figure.signal([x for x, _ in told], [y for _, y in told], marker=_mark(POINTS, number)))
    _figure.ruler("x").lim(0.5, len(series[0][1]) + 0.5)


def _mark(marks: tuple[str, ...], number: int) -> str:
    return marks[number % len(marks)]


def _coloured(text: str, marks: tuple[str, ...]) -> str:
    """Colour what belongs to a series."""
    colours = dict(zip(marks, COLOURS, strict=True))
    runs = re.compile("|".join(f"{re.escape(mark)}+" for mark in marks))
    return runs.sub(lambda run: f"\x1b[{colours[run[0][0]]}m{run[0]}\x1b[0m", text)


def _ticks(labels: list[str], width: int) -> None:
    step = max(1, -(-len(labels) * (len(labels[0]) + 4) // width)) if labels else 1
    places = list(range(1, len(labels) + 1, step))
    _figure.ruler("x").ticks(places, [labels[place - 1] for place in places])


def _bars(labels: list[str], series: Series, width: int) -> list[str]:
    """Draw bars that lie, with their numbers: what is told of few names is better read so."""
    most = max((value or 0.0 for _, values in series for value in values), default=0.0) or 1.0
    names = [label if len(label) <= LABEL_MOST else "…" + label[1 - LABEL_MOST :] for label in labels[:BARS_MOST]]
    label_width = max(len(name) for name in names)
    lines: list[str] = []
    for at, name in enumerate(names):
        for number, (_, values) in enumerate(series):
            value, shown = values[at], f"{values[at]:,.4g}" if values[at] is not None else "-"
            room = max(8, width - label_width - 14)
            bar = FILLS[number] * round((value or 0.0) / most * room)
            lines.append(f"{name if number == 0 else '':<{label_width}}  {bar} {shown}")
    named = [f"{FILLS[number]} {name}" for number, (name, _) in enumerate(series)]
    return [*lines, *(["  ".join(named)] if len(series) > 1 else [])]
