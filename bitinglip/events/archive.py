"""The archive on the server: files of old events in the object store, and their index, which is in the stream LEDGER.

A file counts once `ledger.archived` is in the log, never before: what an archiver that died has left is swept.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from nats.errors import Error as NatsError
from nats.js.api import ObjectStoreConfig, StorageType
from nats.js.errors import APIError, BadBucketError, BucketNotFoundError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from bitinglip.errors import ArchiveDamaged, NoServer, StreamFull
from bitinglip.events import model, node, schedule, subjects, task, worker
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import ask
from bitinglip.events.direct import get_after, get_last
from bitinglip.events.envelope import decode
from bitinglip.events.ledger import LedgerArchived, LedgerTrimmed
from bitinglip.events.registry import REGISTRY
from bitinglip.events.streams import ARCHIVE_BUCKET, FULL_CODES, LEDGER, MODELS, SCHEDULES, TASKS, WORKERS

if TYPE_CHECKING:
    from bitinglip.events.log import EventLog

ARCHIVED = (TASKS, WORKERS, MODELS, SCHEDULES)
"""Streams that are archived. LEDGER is not: it is the index, and stays."""
PATIENCE_S = 60.0
SLOWEST_BYTES_PER_S = 1 << 20
"""A transfer may take `PATIENCE_S`, and its size at this speed."""
ORPHAN_S = 3600.0
"""Age at which a file that the index does not know is somebody's who has died."""
PURGES_AT_ONCE = 32
PURGE_S, PURGE_AGAIN_S = 120.0, 10.0
"""How long the server may take to let many messages leave; what it was asked for it does in any case."""
_DECLARED = (model, node, schedule, task, worker)
"""Modules that declare ticks: they are in the registry once these are imported."""
_STREAM = f"OBJ_{ARCHIVE_BUCKET}"
_METAS, _CHUNKS = f"$O.{ARCHIVE_BUCKET}.M.", f"$O.{ARCHIVE_BUCKET}.C."


def is_tick(subject: bytes, payload: bytes) -> bool:
    """Tell whether a message is an event of a type that leaves the log by itself: its subject and its type say so."""
    parts = subject.split(b".", 4)
    mark = _tick_marks().get((parts[1], parts[3])) if len(parts) > 3 else None
    return mark is not None and mark in payload


# --- the index --------------------------------------------------------------------------------------------------------


async def index(connection: Connection, stream: str) -> list[LedgerArchived]:
    """Return the files of a stream, the oldest first.

    Raises:
        NoServer: the server does not answer.
    """
    found = await get_after(connection, LEDGER, subjects.ledger_subject(stream, "archived"), 0)
    events = [decode(message, LEDGER).event for message in found]
    return [event for event in events if isinstance(event, LedgerArchived)]


async def last_archived(connection: Connection, stream: str) -> tuple[LedgerArchived | None, int]:
    """Return the newest file of a stream, and the sequence in LEDGER of the event that says so: what the next expects.

    Raises:
        NoServer: the server does not answer.
    """
    message = await get_last(connection, LEDGER, subjects.ledger_subject(stream, "archived"))
    event = None if message is None else decode(message, LEDGER).event
    return (event, message.sequence) if message and isinstance(event, LedgerArchived) else (None, 0)


async def last_trimmed(connection: Connection, stream: str) -> tuple[LedgerTrimmed | None, int]:
    """Return up to where a stream has left the server, and the sequence in LEDGER of the event that says so.

    Raises:
        NoServer: the server does not answer.
    """
    message = await get_last(connection, LEDGER, subjects.ledger_subject(stream, "trimmed"))
    event = None if message is None else decode(message, LEDGER).event
    return (event, message.sequence) if message and isinstance(event, LedgerTrimmed) else (None, 0)


async def trimmed_to(connection: Connection, stream: str) -> int:
    """Return the sequence up to which events of a stream may have left the server; 0 if none has.

    Raises:
        NoServer: the server does not answer.
    """
    event, _ = await last_trimmed(connection, stream)
    return 0 if event is None else event.up_to_sequence


# --- files ------------------------------------------------------------------------------------------------------------


async def store(connection: Connection, name: str, path: Path) -> None:
    """Put a file into the archive, under a name that no other file has.

    Raises:
        StreamFull: there is no room for it.
        NoServer: the server did not take it.
        OSError: it cannot be read.
    """
    with _errors_named("storing a file of the archive"):
        bucket = await _bucket(connection)
        with path.open("rb") as file:
            await bucket.put(name, file)


async def fetch(connection: Connection, file: LedgerArchived, path: Path) -> None:
    """Write a file of the archive to a path, and check it against the index.

    Raises:
        ArchiveDamaged: it is not there, or not what the index says.
        NoServer: the server does not answer.
        OSError: it cannot be written.
    """
    with _errors_named("reading a file of the archive"):
        bucket = await _bucket(connection)
        try:
            async with asyncio.timeout(PATIENCE_S + file.size_bytes / SLOWEST_BYTES_PER_S):
                with path.open("wb") as target:
                    await bucket.get(file.file, writeinto=target)  # type: ignore[arg-type]
        except (ObjectNotFoundError, NotFoundError) as error:
            raise ArchiveDamaged(file=file.file, problem="it is not in the bucket") from error
    if (found := await asyncio.to_thread(digest_of, path)) != file.sha256:
        raise ArchiveDamaged(file=file.file, problem=f"its SHA-256 is {found}, and the index says {file.sha256}")


def digest_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def sweep(log: EventLog, older_than_s: float = ORPHAN_S) -> list[str]:
    """Remove what lies in the bucket, is of that age, and belongs to no file of the index; returns what was removed.

    Raises:
        NoServer: the server does not answer.
    """
    connection = log.connection
    known = {file.file for stream in ARCHIVED for file in await index(connection, stream)}
    before_ns = int((log.clock().timestamp() - older_than_s) * 1e9)
    swept: list[str] = []
    kept: set[str] = set()
    for meta in await _subjects(log, f"{_METAS}>"):
        message = await get_last(connection, _STREAM, meta)
        told: dict[str, Any] = {} if message is None else orjson.loads(message.payload)
        name = base64.urlsafe_b64decode(meta.removeprefix(_METAS)).decode()
        if message is not None and name not in known and message.time_ns < before_ns:
            await purge(connection, _STREAM, meta)
            swept.append(name)
        else:
            kept.add(told.get("nuid", ""))
    for chunks in await _subjects(log, f"{_CHUNKS}>"):
        if chunks.removeprefix(_CHUNKS) not in kept:
            message = await get_last(connection, _STREAM, chunks)
            if message is not None and message.time_ns < before_ns:
                await purge(connection, _STREAM, chunks)
                swept.append(chunks)
    return swept


async def _subjects(log: EventLog, pattern: str) -> list[str]:
    names = (await ask(log.connection, "STREAM.NAMES", {})).get("streams") or ()
    return await log.subjects_of(_STREAM, pattern) if _STREAM in names else []


# --- taking out of a stream -------------------------------------------------------------------------------------------


async def purge(connection: Connection, stream: str, subject: str, before: int | None = None) -> int:
    """Take a subject's messages (wildcards allowed) out of a stream, those before a sequence; returns how many.

    Raises:
        NoServer: the server does not answer, or refuses.
    """
    body: dict[str, Any] = {"filter": subject} | ({"seq": before} if before is not None else {})
    return (await ask(connection, f"STREAM.PURGE.{stream}", body, PURGE_S, PURGE_AGAIN_S)).get("purged", 0)


async def purge_all(connection: Connection, stream: str, chosen: list[str], before: int) -> int:
    """Take many subjects' messages out of a stream, some at a time; see `purge`."""
    slots = asyncio.Semaphore(PURGES_AT_ONCE)

    async def one(subject: str) -> int:
        async with slots:
            return await purge(connection, stream, subject, before)

    return sum(await asyncio.gather(*[one(subject) for subject in chosen]))


@contextmanager
def _errors_named(doing: str) -> Generator[None]:
    try:
        yield
    except APIError as error:
        if error.err_code in FULL_CODES:
            raise StreamFull(problem=f"{doing}: {error.description}") from error
        raise NoServer(problem=f"{doing}: {error.description or error}") from error
    except (NatsError, TimeoutError, ConnectionError) as error:
        raise NoServer(problem=f"{doing}: {str(error) or type(error).__name__}") from error


async def _bucket(connection: Connection) -> ObjectStore:
    try:
        return await connection.js.object_store(ARCHIVE_BUCKET)
    except (BucketNotFoundError, BadBucketError, NotFoundError):
        config = ObjectStoreConfig(
            description="Old events, as files.", storage=StorageType.FILE, replicas=connection.settings.replicas
        )
        return await connection.js.create_object_store(ARCHIVE_BUCKET, config=config)


@cache
def _tick_marks() -> dict[tuple[bytes, bytes], bytes]:
    found: dict[tuple[bytes, bytes], bytes] = {}
    for name, cls in REGISTRY.items():
        if not cls.lasting:
            about, _, event = name.partition(".")
            found[about.encode(), event.encode()] = f'"type":"{name}"'.encode()
    return found
