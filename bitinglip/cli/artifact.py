"""`bitinglip artifact …`: bytes to a gateway and back; and the files of a task's result."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.options import Json, Url, client
from bitinglip.errors import InvalidInput

app = typer.Typer(help="Upload and fetch the bytes of inputs and results.", no_args_is_help=True)

SUFFIXES = {"audio/wav": ".wav", "audio/flac": ".flac", "audio/ogg": ".ogg", "application/json": ".json"}
"""Suffixes where `mimetypes` knows none, or an odd one."""


@app.command()
def put(
    file: Annotated[Path, typer.Argument(help="File to upload.")],
    media_type: Annotated[str | None, typer.Option("--type", help="What it is; none: by its name.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a file, and print how a task's parameter names it."""
    artifact = upload(client(url), file, media_type)
    render.json(artifact) if as_json else render.line(f"artifact:{artifact['sha256']}")


@app.command()
def get(
    digest: Annotated[str, typer.Argument(help="SHA-256, as a result tells it.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")],
    url: Url = None,
) -> None:
    """Fetch an artifact into a file."""
    _save(client(url), digest.removeprefix("artifact:"), out)
    render.line(str(out))


def upload(gateway: Client, file: Path, media_type: str | None = None) -> dict[str, Any]:
    """Upload a file; returns its artifact.

    Raises:
        InvalidInput: the file cannot be read.
    """
    try:
        with file.open("rb") as body:
            return gateway.upload("/v1/artifacts", body, media_type or guessed_type(file))
    except OSError as error:
        raise InvalidInput(field=str(file), problem=error.strerror or str(error)) from error


def data_url(file: Path) -> str:
    """Return a file as a data: URL.

    Raises:
        InvalidInput: the file cannot be read.
    """
    try:
        return f"data:{guessed_type(file)};base64,{base64.b64encode(file.read_bytes()).decode()}"
    except OSError as error:
        raise InvalidInput(field=str(file), problem=error.strerror or str(error)) from error


def guessed_type(file: Path) -> str:
    """Return the media type that a file's name tells."""
    return mimetypes.guess_type(file.name)[0] or "application/octet-stream"


def save_all(gateway: Client, task: dict[str, Any], folder: Path) -> list[Path]:
    """Write the files of a task's result into a folder; returns their paths.

    Raises:
        InvalidInput: the folder cannot be written.
    """
    result = task.get("result")
    if result is None:
        reference = cast("dict[str, Any] | None", task.get("result_ref"))
        result = gateway.get(f"/v1/artifacts/{reference['sha256']}") if reference else None
    paths: list[Path] = []
    for number, part in enumerate(artifacts_in(result)):
        kind = str(part["media_type"]).partition(";")[0]
        suffix = SUFFIXES.get(kind) or mimetypes.guess_extension(kind) or ".bin"
        path = folder / f"{task['task_id']}-{number}{suffix}"
        _save(gateway, str(part["sha256"]), path)
        paths.append(path)
    return paths


def artifacts_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the artifacts of a result, in order."""
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from artifacts_in(item)
    elif isinstance(value, dict):
        part = cast("dict[str, Any]", value)
        if {"sha256", "media_type"} <= part.keys():
            yield part
        else:
            for item in part.values():
                yield from artifacts_in(item)


def _save(gateway: Client, digest: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                gateway.download(f"/v1/artifacts/{digest}", file)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise InvalidInput(field=str(path), problem=error.strerror or str(error)) from error
