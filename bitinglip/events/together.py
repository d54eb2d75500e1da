"""Several events that are stored together or not at all: an atomic batch of the server (ADR-50).

One takes the server about 2 ms, and they do not overlap; what comes one by one is appended by `EventLog.append`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Seq

import orjson
from nats.aio.msg import Msg

from bitinglip.errors import Conflict, NoServer, NotPermitted
from bitinglip.events.appending import CHUNK, Append, check_conflict, refusal
from bitinglip.events.log import EventLog
from bitinglip.ids import Sequence

MOST = 1000
"""Events that a server stores together."""
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"


async def append_together(log: EventLog, appends: Seq[Append]) -> Sequence:
    """Store events of one stream next to each other, all or none; returns the sequence of the last one.

    They are sent again if no answer comes; if they were stored after all, that is a conflict of theirs with themselves.

    Raises:
        Conflict: the last event of one of their subjects is not the expected one; it names that of the last append.
        NoServer: the server did not answer in `append_timeout_s`. They may be stored.
        StreamFull, PayloadTooLarge: the server refused them for good.
    """
    timeout_s = log.connection.settings.append_timeout_s
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return await _send_checked(log, appends, timeout_s / 2)
        except NotPermitted:
            raise
        except NoServer:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(min(0.1, timeout_s / 4))


async def _send_checked(log: EventLog, appends: Seq[Append], timeout_s: float) -> Sequence:
    try:
        return await _send(log, appends, timeout_s)
    except Conflict:
        await check_conflict(log.connection, reversed(appends))  # the last one is mostly the batch's
        raise


async def _send(log: EventLog, appends: Seq[Append], timeout_s: float) -> Sequence:
    connection, acked = log.connection, asyncio.get_running_loop().create_future()

    def answered(msg: Msg) -> None:
        if not acked.done():
            acked.set_result(msg.data)

    reply, batch_id, begun = connection.expect(answered), log.ids(), time.monotonic()
    try:
        for number, append in enumerate(appends, 1):
            last = number == len(appends)
            headers = append.headers | {BATCH_ID: batch_id, BATCH_SEQUENCE: str(number)}
            headers |= {BATCH_COMMIT: "1"} if last else {}
            await connection.publish(append.subject, append.payload, headers, reply if last else "")
            if number % CHUNK == 0:
                await asyncio.sleep(0)  # let these go out while the next ones are made
        async with asyncio.timeout(timeout_s):  # not `wait_for`: before Python 3.12 it may swallow a cancellation
            data = await acked
    except TimeoutError:
        raise connection.unanswered("no ack in time", begun, *(append.subject for append in appends)) from None
    finally:
        connection.forget(reply)
    return _read(data, appends[-1])


def _read(data: bytes, last: Append) -> Sequence:
    if not data:
        raise NoServer(problem="no stream takes this subject right now")
    answer = orjson.loads(data)
    if "error" in answer:
        raise refusal(answer["error"], last)
    return Sequence(answer["seq"])
