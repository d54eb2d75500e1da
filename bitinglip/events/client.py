"""nats-py's client with four things more.

A connection that was refused is closed. What the server does not permit is remembered: it answers nothing then. What is
published by many at once leaves in portions, so that the server works while the rest is still being made. And there are
subscriptions whose messages are handed over as they are parsed:

Replaying a stream is where a message's price counts. The usual way (parse its headers, build a `Msg`, pass a queue,
begin a coroutine) costs 17 µs a message; this one costs 3, and the reader looks at headers if it must.
"""

# nats-py leaves much of itself untyped, and has no public way to what is done here.
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.aio.transport import TcpTransport
from nats.errors import (
    BadHeaderError,
    BadSubjectError,
    ConnectionClosedError,
    ConnectionDrainingError,
    MaxPayloadError,
    OutboundBufferLimitError,
)

from bitinglip.events.parser import DirectHandler, DirectParser

Handler = Callable[[Msg], Awaitable[None]]

PUBLISH = "publish"
PORTION_BYTES = 16_384
"""What is written to the socket at once, and not only when the event loop comes round."""
REFUSALS = 100
"""Of what the server did not permit, so many of the last are remembered."""
_NO_SUBJECT = re.compile(r"^$|\s")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that the server did not permit."""

    what: str
    """publish or subscription."""
    subject: str
    at: float
    """When it was told, by the monotonic clock, in seconds."""


class DirectClient(Client):
    """A client that can hand messages over directly."""

    def __init__(self) -> None:
        super().__init__()
        self._direct: dict[bytes, DirectHandler] = {}
        self._bare: dict[bytes, DirectHandler] = {}
        self._ps = DirectParser(self, self._direct, self._bare, self._refuse)
        self._refusals: deque[Refusal] = deque(maxlen=REFUSALS)
        self._in_portions = False

    @property
    def cluster(self) -> str:
        """Name of the cluster that the server is one of; empty if it is alone."""
        return self._server_info.get("cluster", "")

    def refusal(self, since: float, subjects: Collection[str] = ()) -> Refusal | None:
        """Return the last thing that was not permitted since then (by the monotonic clock); none if all was.

        `subjects`: of what is published on these alone. The server answers nothing in such a case.
        """
        for told in reversed(self._refusals):
            if told.at >= since and (not subjects or (told.what == PUBLISH and told.subject in subjects)):
                return told
        return None

    def _refuse(self, what: str, subject: str) -> None:
        self._refusals.append(Refusal(what, subject, time.monotonic()))

    async def _process_connect_init(self) -> None:
        # nats-py opens the next connection over one that the server refused, and forgets the first.
        try:
            await super()._process_connect_init()
        except BaseException:
            if self._transport is not None:
                self._transport.close()
            raise
        self._in_portions = isinstance(self._transport, TcpTransport)
        if isinstance(self._transport, TcpTransport) and self._transport._io_writer is not None:
            # uvloop writes what is above this limit at once, and the rest when the loop comes round.
            self._transport._io_writer.transport.set_write_buffer_limits(high=PORTION_BYTES - 1)

    async def send(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish as `publish` does; the frame is made in one go, and what many publish at once leaves in portions.

        Raises:
            nats.errors.Error: the connection is away, or the message is none that the server would take.
        """
        if _NO_SUBJECT.search(subject) or (reply and _NO_SUBJECT.search(reply)):
            raise BadSubjectError
        if self.is_closed:
            raise ConnectionClosedError
        if self.is_draining_pubs:
            raise ConnectionDrainingError
        if not self.is_connected:
            raise OutboundBufferLimitError
        if len(payload) > self._max_payload:
            raise MaxPayloadError
        made = frame(subject, payload, headers, reply)
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += len(payload)
        self._pending.append(made)
        self._pending_data_size += len(made)
        if self._pending_data_size >= PORTION_BYTES and self._in_portions:
            self._write_portion()
        elif self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def _write_portion(self) -> None:
        assert self._transport is not None
        with suppress(RuntimeError):  # the socket was closed a moment ago: it stays as it is, for the flusher to find
            self._transport.writelines(self._pending)
            self._pending, self._pending_data_size = [], 0

    async def subscribe_direct(self, subject: str, handler: DirectHandler) -> Subscription:
        """Subscribe; the handler bounds its own memory."""
        subscription = await self.subscribe(subject, pending_msgs_limit=0, pending_bytes_limit=0)
        self._direct[_number(subscription)] = handler
        return subscription

    async def subscribe_bare(self, subject: str, handler: DirectHandler, other: Handler) -> Subscription:
        """Subscribe; messages without headers (an append's ack) are handed over directly, those with go to `other`."""
        subscription = await self.subscribe(subject, cb=other, pending_msgs_limit=0, pending_bytes_limit=0)
        self._bare[_number(subscription)] = handler
        return subscription

    def forget_direct(self, subscription: Subscription) -> None:
        """Hand nothing more over."""
        self._direct.pop(_number(subscription), None)


def frame(subject: str, payload: bytes, headers: Mapping[str, str] | None, reply: str) -> bytes:
    """Return what publishes a message, as the protocol has it (https://docs.nats.io/reference/nats-protocol).

    Raises:
        BadHeaderError: a header would be several lines.
    """
    if not headers:
        return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(payload), payload)
    told = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if told.count("\r") != len(headers) or told.count("\n") != len(headers):
        raise BadHeaderError
    head = f"NATS/1.0\r\n{told}\r\n".encode()
    size = len(head)
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject.encode(), reply.encode(), size, size + len(payload), head, payload,
    )  # fmt: skip


def _number(subscription: Subscription) -> bytes:
    return str(subscription._id).encode()
