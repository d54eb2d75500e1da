"""Charts as SVG that needs nothing else: no script, no font, no other file, and the colours of the page around it."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, cast

from bitinglip.projections.reports import Chart

COLOURS = ("#3b78c3", "#e08b2d", "#3f9b5c", "#c4484f", "#8a63b5", "#7d7d7d", "#2fa3a8")
"""Told apart on white and on black, also by those who do not see red and green as different."""
FONT = "system-ui, sans-serif"
WIDTH, HEIGHT = 860, 340
LABELS_MOST = 12
_KINDS = {"stacked": "StackedBar", "lines": "Line", "bars": "HorizontalBar"}


def svg(chart: Chart) -> str:
    """Draw a chart."""
    drawn = getattr(_pygal(), _KINDS[chart.kind])(
        width=WIDTH,
        height=_height(chart),
        style=_style(),
        js=[],
        title=f"{chart.title} ({chart.unit})",
        no_data_text="nothing in this time",
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        truncate_legend=40,
        truncate_label=40,
        show_minor_x_labels=False,
        x_label_rotation=20 if chart.kind != "bars" else 0,
        dots_size=2,
        show_legend=len(chart.series) > 1 or chart.kind != "bars",
        show_y_guides=bool(chart.series),
        show_y_labels=bool(chart.series),
        disable_xml_declaration=True,
    )
    order = -1 if chart.kind == "bars" else 1  # bars that lie are drawn from below
    drawn.x_labels = chart.labels[::order] if chart.series else []
    drawn.x_labels_major = _some(chart)
    for name, values in chart.series:
        drawn.add(name, values[::order])
    drawn.add_xml_filter(_without_scripts)
    return cast("str", drawn.render(is_unicode=True))


@cache
def _pygal() -> Any:
    """Return what draws; it is loaded with the first chart, which few gateways draw."""
    import pygal  # pyright: ignore[reportMissingTypeStubs]

    # It adds a finder of its plug-ins, of a form that Python no longer takes: each import that fails would warn.
    sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    return pygal


def _some(chart: Chart) -> list[str]:
    """Return the labels that there is room for."""
    return chart.labels if chart.kind == "bars" else chart.labels[:: -(-len(chart.labels) // LABELS_MOST) or 1]


def _height(chart: Chart) -> int:
    bars = len(chart.labels) * max(1, len(chart.series)) if chart.kind == "bars" and chart.series else 0
    return max(HEIGHT, 120 + 18 * bars)


def _style() -> Any:
    ink = "var(--ink, #222)"
    return _pygal().style.Style(
        background="transparent",
        plot_background="transparent",
        foreground=ink,
        foreground_strong=ink,
        foreground_subtle="var(--faint, #999)",
        guide_stroke_color="var(--line, #ccc)",
        major_guide_stroke_color="var(--line, #ccc)",
        font_family=FONT,
        title_font_size=15,
        legend_font_size=12,
        label_font_size=11,
        major_label_font_size=11,
        no_data_font_size=15,
        value_font_size=11,
        tooltip_font_size=11,
        opacity=".9",
        opacity_hover=".9",
        transition="0s",
        colors=COLOURS,
    )


def _without_scripts(root: Any) -> Any:
    """Take out what would run, and what says when it was drawn."""
    for parent in list(root.iter()):
        for child in list(parent):
            if callable(child.tag) or str(child.tag).rpartition("}")[2] == "script":
                parent.remove(child)
    return root
