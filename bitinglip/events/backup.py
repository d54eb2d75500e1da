"""The whole log as files, and back: the server's own snapshots of its streams, artifacts and queues included.

A stream that is restored keeps its sequences, but counts as another one than before. QUEUE, which copies from TASKS,
would therefore copy all that was ever ready once more: so it is told where to go on (`opt_start_seq`), and
`ensure_streams` leaves that as it is.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from pydantic import BaseModel, ConfigDict, ValidationError

from bitinglip.errors import BackupUnusable, LogExists, NoServer
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.consumers import ask
from bitinglip.events.streams import (
    ARCHIVE_BUCKET,
    ARTIFACTS_BUCKET,
    ARTIFACTS_INDEX,
    KEYS_STREAM,
    LEDGER,
    MODELS,
    QUEUE,
    SCHEDULES,
    TASKS,
    WORKERS,
)

BUCKETS = (f"KV_{ARTIFACTS_INDEX}", f"OBJ_{ARTIFACTS_BUCKET}", f"OBJ_{ARCHIVE_BUCKET}")
ALL_BUCKETS = (KEYS_STREAM, *BUCKETS)
SAVED = (QUEUE, LEDGER, TASKS, SCHEDULES, WORKERS, MODELS, *BUCKETS)
"""Without the keys of private tasks, unless they are asked for.

In this order: what is named by a stream that is saved before is then in those that are saved after it."""
RESTORED = (TASKS, SCHEDULES, WORKERS, MODELS, LEDGER, *ALL_BUCKETS, QUEUE)
"""Who finds QUEUE finds all of them."""
MANIFEST = "backup.json"
FORMAT = 1
CHUNK_BYTES = 256 * 1024
SILENT_S = 30.0
"""Longest that the server may be silent in the middle of a snapshot."""
RESTORE_S = 600.0
"""Longest that it may take to bring in what it was sent."""
CAUGHT_UP_S = 1.0
LEADER_LOOK_S = 0.5
LEADER_LOOKS = 40
LISTENER_PAUSES_S = (0.05, 0.2, 0.5, 1.0, 2.0)


class SavedStream(BaseModel):
    """One stream of a backup; its bytes are in `<name>.snapshot`."""

    model_config = ConfigDict(frozen=True)

    name: str
    config: dict[str, Any]
    state: dict[str, Any]
    sha256: str

    @property
    def messages(self) -> int:
        """How many messages it has."""
        return self.state.get("messages", 0)


class Manifest(BaseModel):
    """What a backup consists of; written last."""

    model_config = ConfigDict(frozen=True)

    format: int
    queued: int
    """Sequence in TASKS up to which all that was ready to run had been put into QUEUE."""
    streams: list[SavedStream]


async def back_up(connection: Connection, folder: Path, *, keys: bool = False) -> Manifest:
    """Write the log into an empty folder. What is written into the log meanwhile may or may not be in it.

    With `keys` those of private tasks are in it: without them nobody reads those tasks from it, and with them also a
    task that is forgotten later can be.

    Raises:
        BackupUnusable: the folder is not empty.
        NoServer: the server does not answer, or has no log.
        OSError: the folder cannot be written.
    """
    await asyncio.to_thread(_make_empty, folder)
    there = await _streams(connection)
    if TASKS not in there:
        raise NoServer(problem="there is no log on this server")
    queued = await _queued(connection)
    wanted = (*SAVED, KEYS_STREAM) if keys else SAVED
    saved = [await _save(connection, name, folder) for name in wanted if name in there]
    manifest = Manifest(format=FORMAT, queued=queued, streams=saved)
    (folder / MANIFEST).write_bytes(orjson.dumps(manifest.model_dump(), option=orjson.OPT_INDENT_2))
    return manifest


async def restore(connection: Connection, folder: Path, replicas: int) -> Manifest:
    """Bring a backup into a server, or a cluster, that has no log yet.

    Raises:
        BackupUnusable: it is no whole backup.
        LogExists: there is one already, or a part of one.
        NoServer: the server does not answer, or refuses.
    """
    manifest = await asyncio.to_thread(read_manifest, folder)
    if taken := sorted(set(RESTORED) & await _streams(connection)):
        raise LogExists(streams=", ".join(taken))
    streams = {stream.name: stream for stream in manifest.streams}
    for name in RESTORED:
        if name in streams:
            config = streams[name].config | {"num_replicas": replicas}
            await _bring_in(connection, streams[name], folder, _going_on(config, manifest.queued + 1))
        if name == TASKS and replicas > 1:
            await _move_leader(connection, name)
    return manifest


async def _move_leader(connection: Connection, name: str) -> None:
    """Have another server lead a stream than the one that restored it.

    Until it is started again, that one has another idea of when the stream was made than the others; and who copies
    from a stream begins anew when that seems to change.
    """
    restorer = await _leader(connection, name)
    for _ in range(LEADER_LOOKS):
        await asyncio.sleep(LEADER_LOOK_S)
        leader = await _leader(connection, name)
        if leader not in {None, restorer}:
            return
        if leader == restorer:
            with suppress(NoServer):  # the others may not be up to date yet
                await ask(connection, f"STREAM.LEADER.STEPDOWN.{name}", {})


async def _leader(connection: Connection, name: str) -> str | None:
    return (await ask(connection, f"STREAM.INFO.{name}", {})).get("cluster", {}).get("leader")


def read_manifest(folder: Path) -> Manifest:
    """Return what a backup consists of, when all of it is there.

    Raises:
        BackupUnusable: it is not.
    """
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        for stream in manifest.streams:
            with _file(folder, stream.name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != stream.sha256:
                    raise BackupUnusable(folder=str(folder), problem=f"{stream.name}'s file is not as it was written")
    except (OSError, ValidationError) as error:
        raise BackupUnusable(folder=str(folder), problem=str(error)) from error
    if manifest.format != FORMAT:
        raise BackupUnusable(folder=str(folder), problem=f"its format is {manifest.format}, and {FORMAT} is known")
    return manifest


def _make_empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise BackupUnusable(folder=str(folder), problem="it is not empty")


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.snapshot"


async def _streams(connection: Connection) -> set[str]:
    return set((await ask(connection, "STREAM.NAMES", {})).get("streams") or ())


async def _queued(connection: Connection) -> int:
    """Return the last sequence of TASKS, once QUEUE has all of it that is ready to run."""
    last = (await ask(connection, f"STREAM.INFO.{TASKS}", {}))["state"]["last_seq"]
    behind = 1
    while behind:
        await asyncio.sleep(CAUGHT_UP_S)  # the server tells of a lag a moment late
        sources = (await ask(connection, f"STREAM.INFO.{QUEUE}", {})).get("sources") or ()
        behind = sum(source.get("lag", 0) for source in sources)
    return last


def _going_on(config: dict[str, Any], begin: int) -> dict[str, Any]:
    """Return a stream's configuration that copies from others, if it does, only what comes from there on."""
    if not config.get("sources"):
        return config
    return config | {"sources": [source | {"opt_start_seq": begin} for source in config["sources"]]}


async def _save(connection: Connection, name: str, folder: Path) -> SavedStream:
    """Write one stream's snapshot, chunk by chunk; the server sends more as they are acknowledged."""
    chunks: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = connection.client.new_inbox()
    subscription = await connection.subscribe(inbox, chunks.put)
    try:
        asked = {"deliver_subject": inbox, "chunk_size": CHUNK_BYTES}
        told = await ask(connection, f"STREAM.SNAPSHOT.{name}", asked)
        digest = hashlib.sha256()
        with _file(folder, name).open("wb") as file:
            while chunk := await _next_chunk(connection, chunks, name):
                digest.update(chunk)
                file.write(chunk)
    finally:
        await connection.unsubscribe(subscription)
    return SavedStream(name=name, config=told["config"], state=told["state"], sha256=digest.hexdigest())


async def _next_chunk(connection: Connection, chunks: asyncio.Queue[Msg], name: str) -> bytes:
    """Return the next chunk; an empty one is the end."""
    try:
        msg = await asyncio.wait_for(chunks.get(), SILENT_S)
    except TimeoutError as error:
        raise NoServer(problem=f"no more of the snapshot of {name} came") from error
    if not msg.data and msg.headers and msg.headers.get("Status", "204") != "204":
        raise NoServer(problem=f"the snapshot of {name}: {msg.headers.get('Description')}")
    if msg.reply:
        await connection.publish(msg.reply, b"")
    return msg.data


async def _bring_in(connection: Connection, stream: SavedStream, folder: Path, config: dict[str, Any]) -> None:
    what = f"STREAM.RESTORE.{stream.name}"
    subject: str = (await ask(connection, what, {"config": config, "state": stream.state}))["deliver_subject"]
    with _file(folder, stream.name).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            await _send(connection, subject, chunk)
    await _send(connection, subject, b"")


async def _send(connection: Connection, subject: str, chunk: bytes) -> None:
    """Send a chunk; an empty one is the end, whose answer comes when the stream is there.

    In a cluster it may take a moment until our server knows which of the others wants it.
    """
    for pause_s in LISTENER_PAUSES_S:
        try:
            answer = await cancellable(connection.client.request(subject, chunk, timeout=RESTORE_S))
            break
        except NoRespondersError:
            await asyncio.sleep(pause_s)
        except (NatsError, OSError, TimeoutError) as error:
            raise NoServer(problem=f"{subject}: {error or type(error).__name__}") from error
    else:
        raise NoServer(problem=f"{subject}: nobody listens")
    if answer.data and (refused := orjson.loads(answer.data).get("error")):
        raise NoServer(problem=f"{subject}: {refused.get('description')}")
