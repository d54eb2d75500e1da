"""Snapshots of the read model, in a bucket of their own: files under a name, checked by whoever fetches them."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js.api import ObjectStoreConfig, StorageType
from nats.js.errors import BadBucketError, BucketNotFoundError, NotFoundError
from nats.js.object_store import ObjectStore

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.streams import SNAPSHOTS_BUCKET

PATIENCE_S = 30.0
SLOWEST_BYTES_PER_S = 1 << 20
"""A transfer may take `PATIENCE_S`, and its size at this speed: one whose bytes went meanwhile would wait for ever."""


async def put(connection: Connection, name: str, path: Path) -> None:
    """Store a file under a name.

    Raises:
        NoServer: the server did not take it.
        OSError: the file cannot be read.
    """
    with _errors_named("storing a snapshot"), path.open("rb") as file:
        await (await _bucket(connection)).put(name, file)


async def get(connection: Connection, name: str, path: Path) -> bool:
    """Write what is stored under a name into a file; false if there is no such thing.

    Raises:
        NoServer: the server did not answer.
        OSError: the file cannot be written.
    """
    with _errors_named("reading a snapshot"), path.open("wb") as file:
        try:
            store = await _bucket(connection)
            info = await store.get_info(name)
            async with asyncio.timeout(PATIENCE_S + (info.size or 0) / SLOWEST_BYTES_PER_S):
                await store.get(name, writeinto=file)
        except NotFoundError:
            return False
    return True


async def keep(connection: Connection, names: frozenset[str]) -> None:
    """Drop all but these.

    Raises:
        NoServer: the server did not answer.
    """
    with _errors_named("dropping old snapshots"):
        store = await _bucket(connection)
        try:
            found = await store.list(ignore_deletes=True)
        except NotFoundError:
            return
        for name in sorted({info.name for info in found} - names):
            with suppress(NotFoundError):  # another gateway was faster
                await store.delete(name)


async def _bucket(connection: Connection) -> ObjectStore:
    try:
        return await connection.js.object_store(SNAPSHOTS_BUCKET)
    except (BucketNotFoundError, BadBucketError, NotFoundError):
        config = ObjectStoreConfig(
            description="Copies of the read model, for gateways that start.",
            storage=StorageType.FILE,
            replicas=connection.settings.replicas,
        )
        return await connection.js.create_object_store(SNAPSHOTS_BUCKET, config=config)


@contextmanager
def _errors_named(doing: str) -> Generator[None]:
    try:
        yield
    except (NatsError, TimeoutError, ConnectionError) as error:
        raise NoServer(problem=f"{doing}: {str(error) or type(error).__name__}") from error
