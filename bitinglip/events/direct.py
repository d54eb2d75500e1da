"""Reads by direct get (ADR-31): answered from the stream's index, by any replica, without a consumer."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import orjson
from nats.aio.msg import Msg

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.envelope import RawMessage

BATCH = 1000
TIMEOUT_S = 5.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def get_last(connection: Connection, stream: str, subject: str) -> RawMessage | None:
    """Return the last message on a subject (wildcards allowed); none if there is none.

    Raises:
        NoServer: the server does not answer.
    """
    found, _ = await _request(connection, stream, {"last_by_subj": subject}, batched=False)
    return found[0] if found else None


async def get_at(connection: Connection, stream: str, sequence: int) -> RawMessage | None:
    """Return the message of a sequence; none if it is not there any more.

    Raises:
        NoServer: the server does not answer.
    """
    found, _ = await _request(connection, stream, {"seq": sequence}, batched=False)
    return found[0] if found else None


async def get_after(connection: Connection, stream: str, subject: str, after: int) -> list[RawMessage]:
    """Return all messages on a subject (wildcards allowed) after a sequence, in order.

    The server is never asked for one more than there are: to find that there is none it looks, for a wildcard, through
    the rest of the stream (2.15: 5 ms for every 100,000 messages). Each answer tells how many are left.

    Raises:
        NoServer: the server does not answer.
    """
    found: list[RawMessage] = []
    left = 1 if not after or await _goes_on(connection, stream, subject, after) else 0
    while left:
        start = (found[-1].sequence if found else after) + 1
        request = {"seq": start, "next_by_subj": subject, "batch": min(left, BATCH)}
        batch, left = await _request(connection, stream, request, batched=True)
        found += batch
    return found


async def get_first_after(connection: Connection, stream: str, subject: str, after: int) -> RawMessage | None:
    """Return the first message on a subject (wildcards allowed) after a sequence; none if there is none.

    Raises:
        NoServer: the server does not answer.
    """
    found, _ = await _request(connection, stream, {"seq": after + 1, "next_by_subj": subject}, batched=False)
    return found[0] if found else None


async def get_last_each(connection: Connection, stream: str, subject: str) -> list[RawMessage]:
    """Return the last message on each of the subjects that a wildcard stands for.

    Raises:
        NoServer: the server does not answer.
    """
    found, _ = await _request(connection, stream, {"multi_last": [subject]}, batched=True)
    return found


async def _goes_on(connection: Connection, stream: str, subject: str, after: int) -> bool:
    last = await get_last(connection, stream, subject)
    return last is not None and last.sequence > after


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

    reply = connection.expect(answered)
    try:
        await connection.publish(f"$JS.API.DIRECT.GET.{stream}", orjson.dumps(request), reply=reply)
        async with asyncio.timeout(TIMEOUT_S):  # not `wait_for`: before Python 3.12 it may swallow a cancellation
            return found, await done
    except TimeoutError as error:
        raise NoServer(problem="direct get: no answer in time") from error
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
    lines = headers.decode().split("\r\n")
    found = dict(line.split(": ", 1) for line in lines if line.startswith("Nats-"))
    return RawMessage(
        int(found["Nats-Sequence"]), _nanoseconds(found["Nats-Time-Stamp"]), found["Nats-Subject"], payload
    )


def _nanoseconds(text: str) -> int:
    moment = datetime.fromisoformat(text)
    delta = moment - _EPOCH
    fraction = text.rstrip("Z").partition(".")[2][:9].ljust(9, "0")
    return (delta.days * 86_400 + delta.seconds) * 1_000_000_000 + int(fraction)
