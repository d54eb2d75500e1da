"""Big bytes by their digest, in the object store: events carry only the reference.

Beside the bytes, which have a lifetime, an index remembers each digest that was ever stored: so an artifact that has
expired can be told from one that never was.

What belongs to a private task is sealed: its digest is that of the sealed bytes, the object says whose it is and what
of it, and whoever reads it here gets it opened, as long as there is its owner's key.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import hashlib
import io
import re
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakSet

from nats.errors import Error as NatsError
from nats.js.api import KeyValueConfig, ObjectInfo, ObjectMeta, ObjectStoreConfig, StorageType
from nats.js.errors import (
    BadBucketError,
    BucketNotFoundError,
    KeyNotFoundError,
    NoStreamResponseError,
    NotFoundError,
    ObjectNotFoundError,
)
from nats.js.kv import KeyValue
from nats.js.object_store import ObjectStore

from bitinglip.errors import ArtifactExpired, ArtifactNotFound, NoServer, SealBroken
from bitinglip.events import sealing
from bitinglip.events.connection import Connection
from bitinglip.events.keys import read_key
from bitinglip.events.streams import ARTIFACTS_BUCKET, ARTIFACTS_INDEX
from bitinglip.events.task import ArtifactRef

MEDIA_TYPE_HEADER = "Content-Type"
OWNER_HEADER = "Bitinglip-Owner"
ROLE_HEADER = "Bitinglip-Role"
UNKNOWN_TYPE = "application/octet-stream"
DUPLICATES_S = 120.0
"""The server's own window for message ids, which must not be longer than a lifetime."""
PATIENCE_S = 30.0
SLOWEST_BYTES_PER_S = 1 << 20
"""A transfer may take `PATIENCE_S`, and its size at this speed: one whose bytes went meanwhile would wait for ever."""
SILENT_S = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Pauses between tries: of a stream that was made a moment ago not every server of a cluster has heard yet."""
_LIFETIMES_SET: WeakSet[Connection] = WeakSet()
"""Connections that have brought the bucket to the lifetime that is set."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NONE = (ObjectNotFoundError, NotFoundError)


async def put(connection: Connection, body: bytes, media_type: str) -> ArtifactRef:
    """Store bytes under their SHA-256 and return the reference; the same bytes are stored once.

    Raises:
        NoServer: the server did not take them.
    """
    reference = ArtifactRef(sha256=hashlib.sha256(body).hexdigest(), size_bytes=len(body), media_type=media_type)
    await _store(connection, reference, io.BytesIO(body))
    return reference


async def put_sealed(
    connection: Connection, key: bytes, owner: str, role: str, body: bytes, media_type: str
) -> ArtifactRef:
    """Store bytes sealed for their owner; the reference is to what is stored. The same bytes twice are two artifacts.

    Raises:
        NoServer: the server did not take them.
    """
    sealed = await asyncio.to_thread(sealing.seal, key, owner, role, body)
    reference = ArtifactRef(
        sha256=hashlib.sha256(sealed).hexdigest(),
        size_bytes=len(sealed),
        media_type=media_type,
        encrypted=sealing.CIPHER,
    )
    await _store(connection, reference, io.BytesIO(sealed), {OWNER_HEADER: owner, ROLE_HEADER: role})
    return reference


async def put_file(connection: Connection, path: Path, media_type: str) -> ArtifactRef:
    """Store a file's bytes under their SHA-256, without holding them all in memory.

    Raises:
        NoServer: the server did not take them.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        digest = (await asyncio.to_thread(hashlib.file_digest, file, "sha256")).hexdigest()
        reference = ArtifactRef(sha256=digest, size_bytes=file.tell(), media_type=media_type)
        file.seek(0)
        await _store(connection, reference, file)
    return reference


async def get(connection: Connection, digest: str) -> tuple[bytes, str]:
    """Return an artifact's bytes and media type.

    Raises:
        ArtifactNotFound: there is none of this digest.
        ArtifactExpired: there was one.
        TaskIsForgotten: it was sealed for a task whose key was destroyed.
        SealBroken: it does not open.
        NoServer: the server did not answer.
    """
    body = io.BytesIO()
    reference, owner = await _fetch(connection, digest, body)
    if owner is None:
        return body.getvalue(), reference.media_type
    return await _opened(connection, owner, digest, body.getvalue()), reference.media_type


async def get_file(connection: Connection, digest: str, path: Path) -> ArtifactRef:
    """Write an artifact's bytes into a file.

    Raises:
        ArtifactNotFound, ArtifactExpired, TaskIsForgotten, SealBroken, NoServer: as for `get`.
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        reference, owner = await _fetch(connection, digest, file)
    if owner is not None:
        sealed = await asyncio.to_thread(path.read_bytes)
        await asyncio.to_thread(path.write_bytes, await _opened(connection, owner, digest, sealed))
    return reference


async def find(connection: Connection, digest: str) -> ArtifactRef:
    """Return what is known of an artifact, which is there.

    Raises:
        ArtifactNotFound, ArtifactExpired, NoServer: as for `get`.
    """
    with _errors_named("looking for an artifact"):
        return _reference(await _info(connection, digest))


async def drop(connection: Connection, digest: str) -> bool:
    """Remove an artifact's bytes; returns whether it was there.

    Raises:
        NoServer: the server did not answer.
    """
    with _errors_named("dropping an artifact"):
        try:
            await (await _bucket(connection)).delete(digest)
        except _NONE:
            return False
    return True


async def sealed_for(connection: Connection, owners: Collection[str]) -> list[str]:
    """Return the digests of all artifacts that are sealed for these owners; it looks at every artifact that there is.

    Raises:
        NoServer: the server did not answer.
    """
    with _errors_named("listing the artifacts"):
        try:
            found = await (await _bucket(connection)).list(ignore_deletes=True)
        except _NONE:
            return []
    return [info.name for info in found if (info.headers or {}).get(OWNER_HEADER) in owners]


async def _opened(connection: Connection, whose: tuple[str, str], digest: str, sealed: bytes) -> bytes:
    owner, role = whose
    key = await read_key(connection, owner)
    if (await asyncio.to_thread(hashlib.sha256, sealed)).hexdigest() != digest:
        raise SealBroken(owner=owner, role=role)
    return await asyncio.to_thread(sealing.unseal, key, owner, role, sealed)


async def _fetch(connection: Connection, digest: str, target: Any) -> tuple[ArtifactRef, tuple[str, str] | None]:
    """Write an artifact's bytes as they are stored; returns whose they are and what of it, if they are sealed."""
    with _errors_named("reading an artifact"):
        info = await _info(connection, digest)
        store = await _bucket(connection)
        try:
            async with asyncio.timeout(PATIENCE_S + (info.size or 0) / SLOWEST_BYTES_PER_S):
                await store.get(digest, writeinto=target)
        except _NONE as error:
            raise ArtifactExpired(digest=digest) from error
    headers = info.headers or {}
    whose = (headers[OWNER_HEADER], headers[ROLE_HEADER]) if OWNER_HEADER in headers else None
    return _reference(info), whose


async def _info(connection: Connection, digest: str) -> ObjectInfo:
    if _DIGEST.fullmatch(digest) is None:
        raise ArtifactNotFound(digest=digest)
    try:
        return await (await _bucket(connection)).get_info(digest)
    except _NONE as error:
        if await _was_stored(connection, digest):
            raise ArtifactExpired(digest=digest) from error
        raise ArtifactNotFound(digest=digest) from error


async def _was_stored(connection: Connection, digest: str) -> bool:
    try:
        await (await _index(connection)).get(digest)
    except KeyNotFoundError:
        return False
    return True


async def _store(
    connection: Connection, reference: ArtifactRef, body: Any, whose: Mapping[str, str] = MappingProxyType({})
) -> None:
    digest = reference.sha256
    with _errors_named("storing an artifact"):
        store = await _bucket(connection)
        if not whose and await _lasts(connection, store, digest):
            return
        meta = ObjectMeta(name=digest, headers={MEDIA_TYPE_HEADER: reference.media_type, **whose})

        async def put_bytes() -> None:
            body.seek(0)
            await store.put(digest, body, meta=meta)

        await answered(put_bytes)
        index = await _index(connection)
        await answered(lambda: index.put(digest, str(reference.size_bytes).encode()))


async def answered(call: Callable[[], Awaitable[object]]) -> None:
    """Write to a bucket, again for some seconds while its stream answers nobody.

    Raises:
        NoStreamResponseError: it did not answer at all.
    """
    for pause_s in SILENT_S:
        try:
            await call()
        except NoStreamResponseError:
            await asyncio.sleep(pause_s)
        else:
            return
    await call()


async def _lasts(connection: Connection, store: ObjectStore, digest: str) -> bool:
    """Tell whether the bytes are there, and for at least half of their lifetime to come."""
    try:
        info = await store.get_info(digest)
    except _NONE:
        return False
    days = connection.settings.artifact_lifetime_days
    stored = datetime.fromisoformat(info.mtime) if info.mtime else datetime.now(UTC)
    return days == 0 or datetime.now(UTC) - stored < timedelta(days=days / 2)


def _reference(info: ObjectInfo) -> ArtifactRef:
    headers = info.headers or {}
    return ArtifactRef(
        sha256=info.name,
        size_bytes=info.size or 0,
        media_type=headers.get(MEDIA_TYPE_HEADER, UNKNOWN_TYPE),
        encrypted=sealing.CIPHER if OWNER_HEADER in headers else None,
    )


@contextmanager
def _errors_named(doing: str) -> Generator[None]:
    try:
        yield
    except (NatsError, TimeoutError, ConnectionError) as error:
        raise NoServer(problem=f"{doing}: {str(error) or type(error).__name__}") from error


async def _bucket(connection: Connection) -> ObjectStore:
    """Return the bucket of the bytes, made with the lifetime that is set, or brought to it."""
    lifetime_s = connection.settings.artifact_lifetime_days * 86_400
    try:
        store = await connection.js.object_store(ARTIFACTS_BUCKET)
    except (BucketNotFoundError, BadBucketError, NotFoundError):
        config = ObjectStoreConfig(
            description="Inputs and results that are too big for an event.",
            storage=StorageType.FILE,
            replicas=connection.settings.replicas,
            ttl=lifetime_s or None,
        )
        return await connection.js.create_object_store(ARTIFACTS_BUCKET, config=config)
    if connection not in _LIFETIMES_SET:
        stream = (await connection.js.stream_info(f"OBJ_{ARTIFACTS_BUCKET}")).config
        if (stream.max_age or 0) != lifetime_s:
            await connection.js.update_stream(
                stream.evolve(max_age=lifetime_s, duplicate_window=min(lifetime_s or DUPLICATES_S, DUPLICATES_S))
            )
        _LIFETIMES_SET.add(connection)
    return store


async def _index(connection: Connection) -> KeyValue:
    try:
        return await connection.js.key_value(ARTIFACTS_INDEX)
    except (BucketNotFoundError, BadBucketError, NotFoundError):
        config = KeyValueConfig(
            bucket=ARTIFACTS_INDEX,
            description="Digest of every artifact that was ever stored, with its size.",
            storage=StorageType.FILE,
            replicas=connection.settings.replicas,
        )
        return await connection.js.create_key_value(config=config)
