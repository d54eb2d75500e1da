"""One connection to the NATS server: published messages and their acks, requests, live subscriptions.

All answers of a connection come to one inbox, told apart by a number: an append costs a dictionary entry and a future,
not a subscription.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoServersError, UnexpectedEOF

from bitinglip.errors import BitingLipError, NoServer, NotPermitted, PayloadTooLarge
from bitinglip.events.client import DirectClient, DirectHandler, Handler
from bitinglip.events.streams import check_server
from bitinglip.settings import Nats

if TYPE_CHECKING:
    from bitinglip.events.cold import Cold

log = logging.getLogger(__name__)

_T = TypeVar("_T")
RECONNECT_WAIT_S = 0.25
PINGS_UNANSWERED = 2
"""Pings that may go without an answer; at the next one the connection is dead."""


class Connection:
    """A connection that comes back by itself; while it is away, publishing fails at once instead of piling up."""

    def __init__(self, client: DirectClient, settings: Nats) -> None:
        self.client = client
        self.js = client.jetstream()
        self.settings = settings
        self.cold: Cold | None = None
        """Who reads for this process what has left the server."""
        self.reading_bps: int | None = None
        """Most bits a second that the server is to send of a stream; none: as many as it can."""
        self._inbox = client.new_inbox()
        self._answers: dict[str, Callable[[Msg], None]] = {}
        self._next = 0
        self._listeners: list[Callable[[], None]] = []
        self._closing = False

    @classmethod
    async def open(cls, settings: Nats, name: str) -> Connection:
        """Connect to a server of `settings.url`; when it goes away, to another one.

        Raises:
            NoServer: nothing answers in time.
            ServerTooOld, ServerTooNarrow: it lacks what the log needs.
        """
        client = DirectClient()
        servers = (settings.url or "nats://127.0.0.1:4222").split(",")
        holder: list[Connection] = []

        async def reconnected() -> None:
            holder[0]._came_back()

        async def disconnected() -> None:
            if holder and not holder[0]._closing:
                log.warning("the connection to the NATS server is gone; trying to get it back")

        try:
            await asyncio.wait_for(
                client.connect(
                    servers=servers,
                    name=name,
                    error_cb=_report,
                    disconnected_cb=disconnected,
                    reconnected_cb=reconnected,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType]  (a float works)
                    connect_timeout=settings.connect_timeout_s / len(servers),  # pyright: ignore[reportArgumentType]
                    ping_interval=settings.ping_s,  # pyright: ignore[reportArgumentType]
                    max_outstanding_pings=PINGS_UNANSWERED,
                    pending_size=0,
                    allow_reconnect=True,
                    **_credentials(servers),
                ),
                settings.connect_timeout_s,
            )
        except (OSError, NatsError, TimeoutError) as error:
            with suppress(Exception):
                await client.close()
            raise NoServer(problem=f"{settings.url}: {error or type(error).__name__}") from error
        version = client.connected_server_version
        try:
            check_server(version.major, version.minor, version.patch, max_payload=client.max_payload)
        except BitingLipError:
            await client.close()
            raise
        connection = cls(client, settings)
        holder.append(connection)
        await client.subscribe_bare(f"{connection._inbox}.*", connection._acked, connection._answered)
        return connection

    @property
    def connected(self) -> bool:
        """Whether the server is there right now."""
        return self.client.is_connected

    @property
    def clustered(self) -> bool:
        """Whether the server is one of a cluster, whose streams may have copies that are behind their leaders."""
        return bool(self.client.cluster)

    @property
    def local_host(self) -> str:
        """Address of this machine towards the server; the route there says it, and nothing is sent."""
        url = self.client.connected_url
        host, port = (url.hostname, url.port) if url is not None else ("127.0.0.1", None)
        family, kind, _, _, address = socket.getaddrinfo(host, port or 4222, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as asking:
            asking.connect(address)
            return asking.getsockname()[0]

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call the listener each time the connection has come back; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Publish a message; its delivery is confirmed, if at all, by an answer to `reply`.

        Raises:
            NoServer: the connection is away.
            PayloadTooLarge: the server takes no message of this size.
        """
        try:
            await self.client.send(subject, payload, headers, reply)
        except MaxPayloadError as error:
            raise PayloadTooLarge(
                what="A message to the NATS server (`max_payload` there)", limit_bytes=self.client.max_payload
            ) from error
        except (NatsError, OSError) as error:
            raise NoServer(problem=f"not connected ({type(error).__name__})") from error

    def unanswered(self, problem: str, since: float = 0.0, *subjects: str) -> NoServer:
        """Return what it means that no answer came to what was published at a time (by the monotonic clock) or later.

        `subjects`: on which; if none is given, whatever has not been permitted since then is the reason.
        """
        refusal = self.client.refusal(since, subjects)
        if refusal is None:
            return NoServer(problem=problem)
        return NotPermitted(problem=f"{refusal.what} to {refusal.subject}")

    def expect(self, handler: Callable[[Msg], None]) -> str:
        """Return a fresh reply subject, the answers to which go to the handler until `forget`."""
        self._next += 1
        token = str(self._next)
        self._answers[token] = handler
        return f"{self._inbox}.{token}"

    def forget(self, reply: str) -> None:
        """Stop expecting answers to this reply subject."""
        self._answers.pop(reply.rpartition(".")[2], None)

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Subscribe to live messages; none is dropped for being slow (the handler bounds its own memory)."""
        try:
            return await self.client.subscribe(subject, cb=handler, pending_msgs_limit=0, pending_bytes_limit=0)
        except NatsError as error:
            raise NoServer(problem=f"not connected ({type(error).__name__})") from error

    async def subscribe_direct(self, subject: str, handler: DirectHandler) -> Subscription:
        """Subscribe to messages that are handed over as they are parsed."""
        try:
            return await self.client.subscribe_direct(subject, handler)
        except NatsError as error:
            raise NoServer(problem=f"not connected ({type(error).__name__})") from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; one that is already gone with its connection is fine."""
        self.client.forget_direct(subscription)
        with suppress(NatsError):
            await subscription.unsubscribe()

    async def close(self) -> None:
        """Send what is pending and disconnect."""
        self._closing = True
        if self.client.is_connected:
            with suppress(NatsError, asyncio.TimeoutError):
                await self.client.flush(timeout=2)
        try:
            await cancellable(self.client.close())
        except (OSError, NatsError, RuntimeError) as error:
            log.debug("the connection was gone already: %s", error)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            log.debug("the connection was gone already: its socket's reader was cancelled, and not we")

    def _acked(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes | None) -> None:
        handler = self._answers.get(subject[len(self._inbox) + 1 :].decode())
        if handler is not None:
            handler(Msg(self.client, data=payload))

    async def _answered(self, msg: Msg) -> None:
        handler = self._answers.get(msg.subject.rpartition(".")[2])
        if handler is not None:
            handler(msg)

    def _came_back(self) -> None:
        log.info("the connection to the NATS server is back")
        for listener in list(self._listeners):
            listener()


async def cancellable(call: Coroutine[object, object, _T]) -> _T:
    """Await a call of nats-py's API, and hear of one's own cancellation meanwhile.

    nats-py waits by `asyncio.wait_for`, which before Python 3.12 may swallow a cancellation that comes with the answer.
    """
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait((task,))
    finally:
        task.cancel()
    return task.result()


def _credentials(servers: list[str]) -> dict[str, Any]:
    """Return what every address says of who connects, for servers that the cluster itself names (without it)."""
    parts = [urlsplit(server if "://" in server else f"nats://{server}") for server in servers]
    users = {(part.username, part.password) for part in parts}
    user, password = users.pop()
    if users or user is None:
        return {}
    if password is None:
        return {"token": unquote(user)}
    return {"user": unquote(user), "password": unquote(password)}


async def _report(error: Exception) -> None:
    if isinstance(error, OSError | NoServersError | UnexpectedEOF):
        log.debug("NATS: %s", error or type(error).__name__)
        return
    log.warning("NATS: %s: %s", type(error).__name__, error)
