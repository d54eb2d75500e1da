"""`bitinglip events archive`: put old events into the archive now, and copy its files."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.options import Json, Url, client
from bitinglip.errors import ArchiveDamaged
from bitinglip.events.archivefolder import INDEX

COLUMNS = ("stream", "files", "events", "size_bytes", "archived_to", "trimmed_to", "last_sequence", "behind_s")


class Stream(StrEnum):
    """Which facts."""

    tasks = "tasks"
    workers = "workers"
    models = "models"
    schedules = "schedules"


def archive(
    stream: Annotated[Stream | None, typer.Option(help="Only this stream.")] = None,
    now: Annotated[bool, typer.Option("--now", help="All that there is, not only what makes whole files.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the archive's files, with an index, into this folder.")
    ] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Put old events into the archive, let leave what can, and show how far it is; or copy its files."""
    gateway = client(url)
    params = {"stream": stream and stream.value}
    if output is not None:
        _tell_copy(_copy(gateway, params, output), output, as_json=as_json)
        return
    done = gateway.request("POST", "/v1/log/archive", params=params | {"now": "true" if now else None})
    index = gateway.get("/v1/log/archive", params)
    if as_json:
        render.json(done | index)
        return
    for file in done["archived"]:
        render.line(f"{file['file']}: {file['events']} events, {file['size_bytes']} bytes")
    if done["trimmed"]:
        render.line(f"up to {done['trimmed']['up_to_sequence']}: {done['trimmed']['removed']} messages have left")
    rows = [each | {"files": len(each["files"])} for each in index["streams"]]
    render.table(COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    if index["problem"]:
        render.note(f"the archive waits: {index['problem']}")


def _copy(gateway: Client, params: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Copy the files that are not in the folder yet, each checked, then the index; returns the files.

    Raises:
        ArchiveDamaged: a file is not what the index says.
    """
    index = gateway.get("/v1/log/archive", params)
    files = [file for stream in index["streams"] for file in stream["files"]]
    for file in files:
        path = folder / file["file"]
        if not path.is_file() or _digest(path) != file["sha256"]:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as target:
                gateway.download(f"/v1/log/archive/{file['file']}", target)
            if (found := _digest(path)) != file["sha256"]:
                raise ArchiveDamaged(file=file["file"], problem=f"its SHA-256 is {found}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_bytes(orjson.dumps({"files": files}, option=orjson.OPT_INDENT_2))
    return files


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tell_copy(files: list[dict[str, Any]], folder: Path, *, as_json: bool) -> None:
    told = {"folder": str(folder), "files": len(files), "events": sum(file["events"] for file in files)}
    if as_json:
        render.json(told)
    else:
        render.note(f"{told['files']} files with {told['events']} events in {folder}, listed in {INDEX}")
