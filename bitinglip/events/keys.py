"""The keys of private tasks (and batches, and schedules): a key-value bucket of their own, outside the log.

A key is made once, and read from the stream's leader, so that who is told of a task finds its key. To destroy one is to
have the server write over its bytes, which a key-value bucket as the clients make it forbids (`deny_delete`): so the
stream behind this one is declared here.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import datetime

from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy, RawStreamMsg, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from bitinglip.errors import NoServer, StreamFull, TaskIsForgotten
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.sealing import new_key
from bitinglip.events.streams import KEYS_BUCKET, KEYS_STREAM

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
CONFLICT_CODES = frozenset({10071, 10164})
FULL_CODES = frozenset({10023, 10047, 10077})


async def key_for(connection: Connection, owner: str) -> bytes:
    """Return the key of a task (or batch, or schedule); it is made if there is none.

    Raises:
        NoServer, StreamFull: the bucket does not take it now.
    """
    found = await find_key(connection, owner)
    if found is None:
        await _ensure_bucket(connection)
        found = await _make(connection, owner)
    return found


async def read_key(connection: Connection, owner: str) -> bytes:
    """Return a key that is there.

    Raises:
        TaskIsForgotten: it was destroyed.
        NoServer: the server does not answer.
    """
    found = await find_key(connection, owner)
    if found is None:
        raise TaskIsForgotten(task_id=owner)
    return found


async def find_key(connection: Connection, owner: str) -> bytes | None:
    """Return a key, or none if there is none.

    Raises:
        NoServer: the server does not answer.
    """
    found = await _find(connection, owner)
    return None if found is None else found.data


async def destroy_key(connection: Connection, owner: str) -> bool:
    """Destroy a key: the server writes over its bytes. Returns whether there was one.

    Raises:
        NoServer: the server does not answer.
    """
    found = await _find(connection, owner)
    if found is None or found.seq is None:
        return False
    with _errors_named("destroying a key"), suppress(NotFoundError):
        await cancellable(connection.js.delete_msg(KEYS_STREAM, found.seq))
    return True


async def owners(connection: Connection) -> list[str]:
    """Return whose keys there are.

    Raises:
        NoServer: the server does not answer.
    """
    with _errors_named("listing the keys"):
        try:
            info = await cancellable(connection.js.stream_info(KEYS_STREAM, subjects_filter=_subject("*")))
        except NotFoundError:
            return []
    return [subject.rpartition(".")[2] for subject in info.state.subjects or {}]


async def made_at(connection: Connection, owner: str) -> datetime | None:
    """Return when a key was made; none if there is none.

    Raises:
        NoServer: the server does not answer.
    """
    found = await _find(connection, owner)
    return None if found is None else found.time


async def _find(connection: Connection, owner: str) -> RawStreamMsg | None:
    with _errors_named("reading a key"):
        try:
            return await cancellable(connection.js.get_last_msg(KEYS_STREAM, _subject(owner)))
        except NotFoundError:
            return None


async def _make(connection: Connection, owner: str) -> bytes:
    """Put a new key, unless another process was faster: then that one counts."""
    key = new_key()
    with _errors_named("storing a key"):
        try:
            await cancellable(connection.js.publish(_subject(owner), key, headers={EXPECTED: "0"}))
        except APIError as error:
            if error.err_code in FULL_CODES:
                raise StreamFull(problem=error.description or str(error)) from error
            if error.err_code not in CONFLICT_CODES:
                raise
            return await read_key(connection, owner)
    return key


async def _ensure_bucket(connection: Connection) -> None:
    with _errors_named("making the bucket of the keys"):
        try:
            await cancellable(connection.js.stream_info(KEYS_STREAM))
        except NotFoundError:
            await cancellable(connection.js.add_stream(_declared(connection.settings.replicas)))


def _declared(replicas: int) -> StreamConfig:
    return StreamConfig(
        name=KEYS_STREAM,
        description="The keys of private tasks; without its key a task cannot be read.",
        subjects=[_subject(">")],
        storage=StorageType.FILE,
        num_replicas=replicas,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
    )


def _subject(owner: str) -> str:
    return f"$KV.{KEYS_BUCKET}.{owner}"


@contextmanager
def _errors_named(doing: str) -> Generator[None]:
    try:
        yield
    except (NatsError, OSError, TimeoutError) as error:
        raise NoServer(problem=f"{doing}: {str(error) or type(error).__name__}") from error
