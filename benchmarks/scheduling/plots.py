"""Bars as SVG, by hand: one picture a figure, a group a scenario, a bar a scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

COLOURS = {"ours": "#1f6feb", "fifo": "#d1242f", "static": "#9a6700"}
LABELS = {"ours": "BitingLip", "fifo": "one queue, random workers", "static": "models assigned to cards"}
BAR, GAP, HEIGHT, LEFT, TOP, BELOW = 26, 34, 220, 60, 54, 40


def bars(title: str, unit: str, groups: Mapping[str, Mapping[str, float]], *, logarithmic: bool = False) -> str:
    """Draw groups of bars; a logarithmic axis begins at 0.1."""
    most = max(max(group.values()) for group in groups.values()) or 1.0
    scale = _log_scale(most) if logarithmic else lambda value: value / most
    width = LEFT + len(groups) * (3 * BAR + GAP) + GAP
    parts = [_text(LEFT, 20, title, size=15), *_legend(width)]
    parts += [_tick(scale(value), value, width, unit) for value in _ticks(most, logarithmic)]
    for index, (name, group) in enumerate(groups.items()):
        left = LEFT + GAP / 2 + index * (3 * BAR + GAP)
        parts += [_bar(left + n * BAR, scale(group[key]), key, group[key]) for n, key in enumerate(COLOURS)]
        parts.append(_text(left + 1.5 * BAR, TOP + HEIGHT + 18, name, anchor="middle"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + BELOW}" '
        f'font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


def _log_scale(most: float) -> Callable[[float], float]:
    def scale(value: float) -> float:
        return max(0.0, math.log10(max(value, 0.1) / 0.1) / math.log10(most / 0.1))

    return scale


def _ticks(most: float, logarithmic: bool) -> Sequence[float]:
    if logarithmic:
        return [10.0**power for power in range(-1, math.floor(math.log10(most)) + 1)]
    return [most * part / 4 for part in range(5)]


def _tick(part: float, value: float, width: float, unit: str) -> str:
    y = TOP + HEIGHT * (1 - part)
    line = f'<line x1="{LEFT}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
    return line + _text(LEFT - 6, y + 4, f"{value:.3g}{unit}", anchor="end")


def _bar(left: float, part: float, key: str, value: float) -> str:
    height = max(1.0, HEIGHT * part)
    top = TOP + HEIGHT - height
    rect = f'<rect x="{left:.1f}" y="{top:.1f}" width="{BAR - 3}" height="{height:.1f}" fill="{COLOURS[key]}"/>'
    return rect + _text(left + (BAR - 3) / 2, top - 3, f"{value:.3g}", size=9, anchor="middle")


def _legend(width: float) -> list[str]:
    step = (width - LEFT) / len(COLOURS)
    return [
        f'<rect x="{LEFT + n * step:.0f}" y="30" width="10" height="10" fill="{colour}"/>'
        + _text(LEFT + n * step + 14, 39, LABELS[key], size=10)
        for n, (key, colour) in enumerate(COLOURS.items())
    ]


def _text(x: float, y: float, text: str, *, size: int = 11, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{text}</text>'
