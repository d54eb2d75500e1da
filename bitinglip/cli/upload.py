"""`bitinglip model upload`: a model's folder to a gateway, file by file, each from where it was cut off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from bitinglip.cli import modelwatch, render
from bitinglip.cli.client import Client, ProblemAnswer
from bitinglip.cli.model import Detach, Everywhere, Nodes
from bitinglip.cli.options import Json, Url, client
from bitinglip.errors import GatewayUnreachable, InvalidInput

PIECE_BYTES = 1 << 20
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""After each failure in a row to send more of a file; then it is given up."""
AGAIN = frozenset({"upload_offset", "upload_taken"})
"""Refusals that end by themselves: the gateway has yet to notice that the connection before is lost."""


def upload(
    folder: Annotated[Path, typer.Argument(help="Folder of the model: safetensors, configuration, tokenizer.")],
    name: Annotated[str, typer.Option("--as", help="Name that it gets, as org/name.")],
    node: Nodes = None,
    everywhere: Everywhere = False,
    alias: Annotated[str | None, typer.Option(help="Name that is to stand for it.")] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it, whatever room others need.")] = False,
    detach: Detach = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Upload a model's folder, and follow it to a node. Interrupted and repeated, it goes on where it was."""
    if node and everywhere:
        raise InvalidInput(field="--all-nodes", problem="nodes are named as well; give one of the two")
    gateway, files = client(url), _files(folder)
    listed = [{"path": path, "size_bytes": file.stat().st_size} for path, file in files.items()]
    found = gateway.request("POST", "/v1/uploads", body={"as": name, "files": listed, "dry_run": True})
    if found["left_out"]:
        render.note(f"left out, as no engine loads them: {', '.join(found['left_out'])}")
    taken = [each for each in listed if each["path"] in set(found["files"])]
    with _bar() as bar:
        digests = _hashed(files, taken, bar)
        begun = gateway.request("POST", "/v1/uploads", body={"as": name, "files": digests})
        sent = _Sender(gateway, begun, files, bar).send_all()
    body = {"nodes": "all" if everywhere else node, "alias": alias, "pin": pin}
    answer = gateway.request("POST", begun["links"]["complete"], body=body)
    if not detach:
        render.note(f"{answer['model']} to {', '.join(answer['nodes'])}")
        raise typer.Exit(modelwatch.follow(gateway, answer, as_json=as_json))
    if as_json:
        render.json(answer | {"sent_bytes": sent, "left_out": found["left_out"]})
    else:
        render.line(f"{answer['model']}: {', '.join(answer['nodes'])}")


def _files(folder: Path) -> dict[str, Path]:
    """Return a folder's files by their paths in it; hidden ones are passed over."""
    if not folder.is_dir():
        raise InvalidInput(field=str(folder), problem="is no folder")
    inside = ((file, file.relative_to(folder)) for file in sorted(folder.rglob("*")))
    return {
        path.as_posix(): file
        for file, path in inside
        if file.is_file() and not any(part.startswith(".") for part in path.parts)
    }


class _Bar:
    """Shows how far it is, on a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, what: str, total_bytes: int, done_bytes: int = 0) -> None:
        """Show another step."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._task = self._progress.add_task(what, total=total_bytes, completed=done_bytes)

    def more(self, size: int) -> None:
        """Count bytes; less than zero: what has to be done again."""
        self._progress.advance(self._task, size)


@contextmanager
def _bar() -> Iterator[_Bar]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=render.err, transient=True, disable=not render.err.is_terminal) as progress:
        yield _Bar(progress)


def _hashed(files: dict[str, Path], taken: list[dict[str, Any]], bar: _Bar) -> list[dict[str, Any]]:
    """Return the files with the digests of their contents."""
    bar.begin("reading", sum(each["size_bytes"] for each in taken))
    return [each | {"sha256": _digest(files[each["path"]], bar)} for each in taken]


def _digest(file: Path, bar: _Bar) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb", buffering=0) as stream:
            while piece := stream.read(PIECE_BYTES):
                digest.update(piece)
                bar.more(len(piece))
    except OSError as error:
        raise InvalidInput(field=str(file), problem=error.strerror or str(error)) from error
    return digest.hexdigest()


class _Sender:
    """Sends what is missing of an upload."""

    def __init__(self, gateway: Client, begun: dict[str, Any], files: dict[str, Path], bar: _Bar) -> None:
        self._gateway = gateway
        self._begun = begun
        self._files = files
        self._bar = bar
        self._sent = 0

    def send_all(self) -> int:
        """Send all of it; returns how many bytes that were."""
        self._bar.begin("sending", self._begun["size_bytes"], self._begun["have_bytes"])
        for each in self._begun["missing"]:
            self._send(each["path"], each["size_bytes"], each["have_bytes"])
        return self._sent

    def _send(self, path: str, size: int, have: int) -> None:
        """Send a file, and go on with it when the connection breaks.

        Raises:
            GatewayUnreachable, ProblemAnswer: it cannot be sent, however often it is tried.
        """
        failures = 0
        while True:
            try:
                to = f"{self._begun['links']['files']}/{quote(path)}?offset={have}"
                self._gateway.send(to, self._rest(path, size, have), size - have)
            except (GatewayUnreachable, ProblemAnswer) as error:
                if isinstance(error, ProblemAnswer) and error.document.get("code") not in AGAIN:
                    raise
                if failures == len(PAUSES_S):
                    raise
                time.sleep(PAUSES_S[failures])
            else:
                return
            now = self._have(path, size, have)
            failures, have = (0, now) if now > have else (failures + 1, now)
            if now == size:
                return

    def _rest(self, path: str, size: int, start: int) -> Iterator[bytes]:
        """Yield a file from an offset on, as much as it had when it was read before."""
        with self._files[path].open("rb", buffering=0) as stream:
            stream.seek(start)
            while start < size:
                piece = stream.read(min(PIECE_BYTES, size - start))
                if not piece:
                    raise InvalidInput(field=path, problem="has become smaller meanwhile")
                yield piece
                start += len(piece)
                self._sent += len(piece)
                self._bar.more(len(piece))

    def _have(self, path: str, size: int, before: int) -> int:
        """Return how much of a file the gateway has; what it had before if it does not say."""
        try:
            seen = self._gateway.get(self._begun["links"]["self"])
        except GatewayUnreachable:
            return before
        self._bar.begin("sending", seen["size_bytes"], seen["have_bytes"])
        return next((each["have_bytes"] for each in seen["missing"] if each["path"] == path), size)
