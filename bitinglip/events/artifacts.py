"""Big bytes by their digest, in the object store: events carry only the reference."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import re

from nats.errors import Error as NatsError
from nats.js.api import ObjectMeta, ObjectStoreConfig, StorageType
from nats.js.errors import BadBucketError, BucketNotFoundError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from bitinglip.errors import ArtifactNotFound, NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.streams import ARTIFACTS_BUCKET
from bitinglip.events.task import ArtifactRef

MEDIA_TYPE_HEADER = "Content-Type"
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def put(connection: Connection, body: bytes, media_type: str) -> ArtifactRef:
    """Store bytes under their SHA-256 and return the reference; the same bytes are stored once.

    Raises:
        NoServer: the server did not take them.
    """
    digest = hashlib.sha256(body).hexdigest()
    reference = ArtifactRef(sha256=digest, size_bytes=len(body), media_type=media_type)
    try:
        store = await _bucket(connection)
        if not await _holds(store, digest):
            await store.put(digest, body, meta=ObjectMeta(name=digest, headers={MEDIA_TYPE_HEADER: media_type}))
    except (NatsError, OSError) as error:
        raise NoServer(problem=f"storing an artifact: {error or type(error).__name__}") from error
    return reference


async def get(connection: Connection, digest: str) -> tuple[bytes, str]:
    """Return an artifact's bytes and media type.

    Raises:
        ArtifactNotFound: there is none of this digest.
        NoServer: the server did not answer.
    """
    if _DIGEST.fullmatch(digest) is None:
        raise ArtifactNotFound(digest=digest)
    try:
        result = await (await _bucket(connection)).get(digest)
    except (ObjectNotFoundError, NotFoundError) as error:
        raise ArtifactNotFound(digest=digest) from error
    except (NatsError, OSError) as error:
        raise NoServer(problem=f"reading an artifact: {error or type(error).__name__}") from error
    headers = result.info.headers or {}
    return result.data or b"", headers.get(MEDIA_TYPE_HEADER, "application/octet-stream")


async def _holds(store: ObjectStore, digest: str) -> bool:
    try:
        await store.get_info(digest)
    except (ObjectNotFoundError, NotFoundError):
        return False
    return True


async def _bucket(connection: Connection) -> ObjectStore:
    try:
        return await connection.js.object_store(ARTIFACTS_BUCKET)
    except (BucketNotFoundError, BadBucketError, NotFoundError):
        config = ObjectStoreConfig(
            description="Inputs and results that are too big for an event.",
            storage=StorageType.FILE,
            replicas=connection.settings.replicas,
        )
        return await connection.js.create_object_store(ARTIFACTS_BUCKET, config=config)
