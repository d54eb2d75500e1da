"""`bitinglip config …`: every setting, its value, where that came from, and what it means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from pydantic import SecretStr

from bitinglip.cli import render
from bitinglip.cli.options import Json
from bitinglip.settings import environment_name, iter_fields, load, value_of

app = typer.Typer(help="The configuration.", no_args_is_help=True)


@app.command()
def show(as_json: Json = False) -> None:
    """Print every setting: its value, where the value came from, and its meaning."""
    settings, origins = load()
    rows = [
        {
            "name": name,
            "value": _shown(value_of(settings, name)),
            "origin": origins[name],
            "environment": environment_name(name),
            "description": field.description,
        }
        for name, field in iter_fields()
    ]
    if as_json:
        for row in rows:
            render.json(row)
    else:
        columns = ("name", "value", "origin", "description")
        render.table(columns, [[row[column] for column in columns] for row in rows])


def _shown(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return "(set)"
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value
