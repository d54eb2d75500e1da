"""Reads by direct get (ADR-31): answered from the stream's index, by any replica, without a consumer.

A replica learns of what was acked a moment later than who published it. So in a cluster the leader is asked for the
last message of a subject, and a replica for those before it until it has that one too: what was acked is seen. While
there is no leader, a replica tells what it has. That there is nothing, it cannot tell: who asked would take a task that
was just accepted for none, and ack what is to be done about it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq
from datetime import UTC, datetime
from typing import Any

import orjson
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.envelope import RawMessage, text_of
from bitinglip.events.streams import LEDGER

log = logging.getLogger(__name__)

BATCH = 1000
TIMEOUT_S = 5.0
LEADER_S = 1.0
"""How long a leader is waited for."""
BEHIND_S = (0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
"""Pauses until a replica that is behind is asked again; at the end it is as it says, which is told."""
NO_MESSAGE = 10037
"""The server's code for: there is no such message."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def get_last(connection: Connection, stream: str, subject: str) -> RawMessage | None:
    """Return the last message on a subject (wildcards allowed); none if there is none.

    Of LEDGER, there is none if a replica has none, while there is no leader: it is asked for each submission with an
    idempotency key, and what it says of a task is mostly old.

    Raises:
        NoServer: the server does not answer, or only a replica does, which has none.
    """
    request = {"last_by_subj": subject}
    if not connection.clustered:
        return await _get(connection, stream, request)
    try:
        return await _get_from_leader(connection, stream, request)
    except NoServer as error:
        log.debug("a copy is asked: %s", error)
        found = await _get(connection, stream, request)
        if found is None and stream != LEDGER:
            raise
        return found


async def get_at(connection: Connection, stream: str, sequence: int) -> RawMessage | None:
    """Return the message of a sequence; none if it is not there any more.

    Raises:
        NoServer: the server does not answer.
    """
    return await _get_here_or_from_leader(connection, stream, {"seq": sequence})


async def get_after(connection: Connection, stream: str, subject: str, after: int) -> list[RawMessage]:
    """Return all messages on a subject (wildcards allowed) after a sequence, in order.

    The server is never asked for one more than there are: to find that there is none it looks, for a wildcard, through
    the rest of the stream (2.15: 5 ms for every 100,000 messages). Each answer tells how many are left.

    Raises:
        NoServer: the server does not answer.
    """
    return await _get_up_to_last(
        connection, stream, subject, after, lambda: _get_all(connection, stream, subject, after)
    )


async def get_first_after(connection: Connection, stream: str, subject: str, after: int) -> RawMessage | None:
    """Return the first message on a subject (wildcards allowed) after a sequence; none if there is none.

    Raises:
        NoServer: the server does not answer.
    """
    return await _get_here_or_from_leader(connection, stream, {"seq": after + 1, "next_by_subj": subject})


async def get_last_each(connection: Connection, stream: str, subject: str) -> list[RawMessage]:
    """Return the last message on each of the subjects that a wildcard stands for.

    Raises:
        NoServer: the server does not answer.
    """
    return await _get_up_to_last(connection, stream, subject, 0, lambda: get_last_of(connection, stream, (subject,)))


async def get_last_of(connection: Connection, stream: str, filters: Seq[str]) -> list[RawMessage]:
    """Return the last message on each subject that any of the filters stands for, as one copy has them all.

    Raises:
        NoServer: the server does not answer.
    """
    found, _ = await _request(connection, stream, {"multi_last": list(filters)}, batched=True)
    return found


async def _get_up_to_last(
    connection: Connection, stream: str, subject: str, after: int, get: Callable[[], Awaitable[list[RawMessage]]]
) -> list[RawMessage]:
    """Return what is got, by a replica that has the subject's last message; nothing if that is not after a sequence."""
    if not connection.clustered:
        return await get() if not after or await _goes_on(connection, stream, subject, after) else []
    for pause_s in BEHIND_S:
        last = await get_last(connection, stream, subject)
        if last is None or last.sequence <= after:
            return []
        found = await get()
        if any(message.sequence >= last.sequence for message in found):
            return found
        await asyncio.sleep(pause_s)
    log.warning("a copy of %s is behind its leader; what it has on %s is taken as it is", stream, subject)
    return await get()


async def _goes_on(connection: Connection, stream: str, subject: str, after: int) -> bool:
    last = await get_last(connection, stream, subject)
    return last is not None and last.sequence > after


async def _get_all(connection: Connection, stream: str, subject: str, after: int) -> list[RawMessage]:
    found, left = list[RawMessage](), 1
    while left:
        start = (found[-1].sequence if found else after) + 1
        request = {"seq": start, "next_by_subj": subject, "batch": min(left, BATCH)}
        batch, left = await _request(connection, stream, request, batched=True)
        found += batch
    return found


async def _get_here_or_from_leader(connection: Connection, stream: str, request: dict[str, Any]) -> RawMessage | None:
    found = await _get(connection, stream, request)
    if found is None and connection.clustered:
        try:
            return await _get_from_leader(connection, stream, request)
        except NoServer as error:
            log.debug("it is as a copy says: %s", error)
    return found


async def _get(connection: Connection, stream: str, request: dict[str, Any]) -> RawMessage | None:
    found, _ = await _request(connection, stream, request, batched=False)
    return found[0] if found else None


async def _get_from_leader(connection: Connection, stream: str, request: dict[str, Any]) -> RawMessage | None:
    """Return a message as the stream's leader has it; none if it has none.

    Raises:
        NoServer: it does not answer.
    """
    subject, asked = f"$JS.API.STREAM.MSG.GET.{stream}", time.monotonic()
    try:
        answering = connection.client.request(subject, orjson.dumps(request), timeout=LEADER_S)
        told = orjson.loads((await cancellable(answering)).data)
    except (NatsError, OSError, TimeoutError) as error:
        problem = f"the leader of {stream}: {error or type(error).__name__}"
        raise connection.unanswered(problem, asked, subject) from error
    if "error" in told:
        if told["error"].get("err_code") == NO_MESSAGE:
            return None
        raise NoServer(problem=f"the leader of {stream}: {told['error'].get('description')}")
    message = told["message"]
    payload = base64.b64decode(message.get("data", ""))
    return RawMessage(message["seq"], _nanoseconds(message["time"]), message["subject"], payload)


async def _request(
    connection: Connection, stream: str, request: dict[str, Any], *, batched: bool
) -> tuple[list[RawMessage], int]:
    """Return what is found, and, for a batch, how many messages are left after it."""
    found: list[RawMessage] = []
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def answered(msg: Msg) -> None:
        if done.done():
            return
        headers = msg.headers or {}
        status = headers.get("Status")
        if status is None:
            found.append(raw_from_headers(msg))
            if not batched:
                done.set_result(0)
        elif status in {"204", "404"}:
            done.set_result(int(headers.get("Nats-Num-Pending", 0)) if found else 0)
        else:
            done.set_exception(NoServer(problem=f"direct get: status {status}"))

    reply, subject, asked = connection.expect(answered), f"$JS.API.DIRECT.GET.{stream}", time.monotonic()
    try:
        await connection.publish(subject, orjson.dumps(request), reply=reply)
        async with asyncio.timeout(TIMEOUT_S):  # not `wait_for`: before Python 3.12 it may swallow a cancellation
            return found, await done
    except TimeoutError as error:
        raise connection.unanswered("direct get: no answer in time", asked, subject) from error
    finally:
        connection.forget(reply)


def raw_from_headers(msg: Msg) -> RawMessage:
    """Read a message whose place in its stream is told by headers: the answer to a direct get, or a republished one."""
    headers = msg.headers or {}
    return RawMessage(
        int(headers["Nats-Sequence"]), _nanoseconds(headers["Nats-Time-Stamp"]), headers["Nats-Subject"], msg.data
    )


def raw_from_bytes(headers: bytes, payload: bytes) -> RawMessage:
    """Read such a message from its headers as they came."""
    lines = text_of(headers).split("\r\n")
    found = dict(line.split(": ", 1) for line in lines if line.startswith("Nats-"))
    return RawMessage(
        int(found["Nats-Sequence"]), _nanoseconds(found["Nats-Time-Stamp"]), found["Nats-Subject"], payload
    )


def _nanoseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    delta = moment - _EPOCH
    fraction = text.rstrip("Z").partition(".")[2][:9].ljust(9, "0")
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + int(fraction)
