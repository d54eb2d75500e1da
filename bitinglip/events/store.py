"""How full the log's store is."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.streams import ARCHIVE_BUCKET, ARTIFACTS_BUCKET, LEDGER, MODELS, QUEUE, SCHEDULES, TASKS, WORKERS

STREAMS = (TASKS, QUEUE, WORKERS, MODELS, SCHEDULES, LEDGER, f"OBJ_{ARTIFACTS_BUCKET}", f"OBJ_{ARCHIVE_BUCKET}")


async def stored_bytes(connection: Connection) -> dict[str, int]:
    """Return what each stream takes on a server's disk.

    Raises:
        NoServer: the server does not answer.
    """
    found: dict[str, int] = {}
    for stream in STREAMS:
        try:
            found[stream] = (await connection.js.stream_info(stream)).state.bytes
        except NotFoundError:
            continue
        except (NatsError, OSError) as error:
            raise NoServer(problem=str(error) or type(error).__name__) from error
    return found


async def store_limit(connection: Connection) -> int:
    """Return how many bytes the streams may take: the account's limit or, without one, `nats.max_store_bytes`.

    Raises:
        NoServer: the server does not answer.
    """
    try:
        limits = (await connection.js.account_info()).limits
    except (NatsError, OSError) as error:
        raise NoServer(problem=str(error) or type(error).__name__) from error
    return limits.max_storage if limits.max_storage > 0 else connection.settings.max_store_bytes
