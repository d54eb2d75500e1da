"""The events of an archive, in their order: of a folder of its files, without a server, or of the object store."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from collections.abc import Sequence as Seq
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from bitinglip.errors import ProofUnusable
from bitinglip.events.archive import fetch, index
from bitinglip.events.connection import Connection
from bitinglip.events.envelope import RawMessage, text_of
from bitinglip.events.heads import AUDITED

ROWS = 1_000
"""Rows that are in memory at a time, beside the group of the file that they are in."""
INDEX = "index.json"
"""Lists the files of a copy of the archive."""
COLUMNS = ("sequence", "time_ns", "subject", "payload")


class ArchiveFolder:
    """The files of an archive, `<stream>/<day>/<name>.parquet`."""

    def __init__(self, folder: Path) -> None:
        """Look at a folder, and at its index if it has one.

        Raises:
            ProofUnusable: it has not all that its index lists, or that is none.
        """
        self._folder = folder
        self._files = _listed(folder)
        for name, _, _ in self._files or ():
            if not (folder / name).is_file():
                raise ProofUnusable(problem=f"{folder / name}, which {INDEX} lists, is not there")
        self.streams = tuple(stream for stream in AUDITED if (folder / stream).is_dir())
        """Streams that it has."""

    @property
    def ends(self) -> dict[str, int]:
        """Up to which sequence it has each stream, as its index tells; of a folder without one nothing is known."""
        ends: dict[str, int] = {}
        for _, stream, last in self._files or ():
            ends[stream] = max(last, ends.get(stream, 0))
        return ends

    async def events(self, stream: str) -> AsyncGenerator[Seq[RawMessage], None]:
        """Yield a stream's events in the order of the files.

        Raises:
            ProofUnusable: a file cannot be read.
        """
        batches = _all_rows(self._folder / stream)
        while (batch := await asyncio.to_thread(next, batches, None)) is not None:
            yield batch


async def archived(
    connection: Connection, stream: str, after: int, up_to: int
) -> AsyncGenerator[Seq[RawMessage], None]:
    """Yield the events after a sequence, up to another one, that are in the object store; a file at a time.

    Raises:
        ArchiveDamaged: a file is not there, or not what the index says.
        NoServer: the server does not answer.
        ProofUnusable: a file cannot be read.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file.parquet"
        for file in await index(connection, stream):
            if file.last_sequence > after and file.first_sequence <= up_to:
                await fetch(connection, file, path)
                for batch in _rows(path):
                    yield [message for message in batch if after < message.sequence <= up_to]


def _listed(folder: Path) -> list[tuple[str, str, int]] | None:
    """Return each file that the index lists, its stream, and the last sequence that it has; none without an index."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        files = orjson.loads(path.read_bytes())["files"]
        return [(file["file"], file["stream"], int(file["last_sequence"])) for file in files]
    except (ValueError, KeyError, TypeError) as error:
        raise ProofUnusable(problem=f"{path} is no index of an archive") from error


def _all_rows(folder: Path) -> Iterator[list[RawMessage]]:
    for path in sorted(folder.rglob("*.parquet"), key=_first_sequence):
        yield from _rows(path)


def _rows(path: Path) -> Iterator[list[RawMessage]]:
    for batch in _opened(path).iter_batches(ROWS, columns=list(COLUMNS)):
        columns = [batch.column(name).to_pylist() for name in COLUMNS]
        yield [RawMessage(at, time_ns, _text(on), data) for at, time_ns, on, data in zip(*columns, strict=True)]


def _first_sequence(path: Path) -> int:
    file = _opened(path)
    for batch in file.iter_batches(1, columns=["sequence"]):
        return batch.column(0)[0].as_py()
    return 0


def _opened(path: Path) -> Any:
    from pyarrow import parquet

    with suppress(OSError, ValueError):  # Arrow's own errors are among these
        return parquet.ParquetFile(path)
    raise ProofUnusable(problem=f"{path} is no file of an archive")


def _text(subject: str | bytes) -> str:
    return text_of(subject) if isinstance(subject, bytes) else subject
