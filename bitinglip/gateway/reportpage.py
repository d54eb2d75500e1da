"""A report as one HTML file: its table and its charts, for a screen that is light or dark, and for paper."""

from __future__ import annotations

from datetime import datetime
from html import escape
from typing import Any

from bitinglip.gateway.charts import svg
from bitinglip.projections.reports import Report

STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #767676; --line: #d8d8d8; --paper: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #9a9a9a; --line: #3c3c3c; --paper: #17191c; }
}
@media print { :root { --ink: #000; --faint: #555; --line: #bbb; --paper: #fff; color-scheme: light; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; }
p { color: var(--faint); margin: .3rem 0 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { border-bottom: 2px solid var(--faint); white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.text { overflow-wrap: break-word; min-width: 7rem; max-width: 26rem; }
td:first-child { min-width: 12rem; }
figure { margin: 1.5rem 0; break-inside: avoid; }
figure svg { width: 100%; height: auto; }
thead { display: table-header-group; }
tr { break-inside: avoid; }
@media print { body { margin: 0; max-width: none; } .wide { overflow: visible; } table { font-size: 8pt; } }
"""


def page(report: Report) -> str:
    """Write the page."""
    title = report.heading
    charts = "\n".join(f"<figure>{svg(chart)}</figure>" for chart in report.charts if chart.series)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} - BitingLip</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n"
        f"<p>{_moment(report.since)} to {_moment(report.until)} (UTC)</p>\n"
        f"{_table(report)}\n{charts}\n</body>\n</html>\n"
    )


def _table(report: Report) -> str:
    if not report.rows:
        return "<p>Nothing in this time.</p>"
    shown = [at for at in range(len(report.columns)) if at == 0 or any(row[at] for row in report.rows)]
    rows = [[row[at] for at in shown] for row in report.rows]
    numeric = [all(_is_number(row[at]) for row in rows) for at in range(len(shown))]
    head = "".join(
        f"<th{_class(number, '')}>{escape(_words(report.columns[at]))}</th>"
        for at, number in zip(shown, numeric, strict=True)
    )
    body = "\n".join(_row(row, numeric) for row in rows)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    left_out = [_words(name) for at, name in enumerate(report.columns) if at not in shown]
    note = f"<p>None: {escape(', '.join(left_out))}.</p>" if left_out else ""
    return f'<div class="wide">{table}</div>{note}'


def _words(name: str) -> str:
    return name.replace("_", " ")


def _row(row: list[Any], numeric: list[bool]) -> str:
    cells = "".join(
        f"<td{_class(number, 'text')}>{escape(_cell(value))}</td>" for value, number in zip(row, numeric, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _class(number: bool, otherwise: str) -> str:
    name = "n" if number else otherwise
    return f' class="{name}"' if name else ""


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return _moment(value)
    return f"{value:,.10g}" if isinstance(value, int | float) else str(value)


def _moment(at: datetime) -> str:
    return at.strftime("%Y-%m-%d %H:%M")
