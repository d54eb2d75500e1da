"""`bitinglip events schema`: the JSON Schemas of event types; no server is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json
from bitinglip.errors import InvalidInput


def schema(
    type_: Annotated[str | None, typer.Argument(metavar="TYPE", help="Type, as task.submitted; none: all.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder: a file TYPE.vVERSION.json for each.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the JSON Schema of what an event type's `data` is, or of all types; or write them into a folder."""
    from bitinglip.events import catalogue

    chosen = [catalogue.type_named(type_)] if type_ is not None else catalogue.types()
    schemas = {f"{cls.type}.v{cls.version}": catalogue.schema_of(cls) for cls in chosen}
    if output is None:
        _print(schemas, one=type_ is not None, as_json=as_json)
        return
    _write(output, schemas)
    told = {"folder": str(output), "schemas": len(schemas)}
    render.json(told) if as_json else render.note(f"{len(schemas)} schemas in {output}")


def _print(schemas: dict[str, dict[str, Any]], *, one: bool, as_json: bool) -> None:
    shown = next(iter(schemas.values())) if one else list(schemas.values())
    if as_json:
        render.json(shown)
    else:
        render.text(orjson.dumps(shown, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())


def _write(folder: Path, schemas: dict[str, dict[str, Any]]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, schema in schemas.items():
            text = orjson.dumps(schema, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
            (folder / f"{name}.json").write_bytes(text)
    except OSError as error:
        raise InvalidInput(field="--output", problem=error.strerror or str(error)) from error
