"""One task's events, history and live, joined without gap or repeat.

Live messages come from a feed, if there is one that flows, and else from the republished subject, which bears each
one's sequence. That is plain NATS: what passes while the connection is away is gone there, so after a reconnect, after
an overflow, and once in a while when it is quiet, the history is read on from the last sequence seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from nats.aio.subscription import Subscription

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.cold import task_messages
from bitinglip.events.connection import Connection
from bitinglip.events.direct import raw_from_bytes
from bitinglip.events.envelope import RawMessage
from bitinglip.events.feed import TaskFeed
from bitinglip.ids import TaskId

BUFFER_MOST = 10_000
CATCH_UP_S = 15.0
RETRY_S = 0.25


class LiveEvents:
    """A reader of one task's events: opened, read once by `batches`, closed by whoever opened it."""

    def __init__(self, connection: Connection, task_id: TaskId, feed: TaskFeed | None = None) -> None:
        self._connection = connection
        self._task_id = task_id
        self._feed = feed
        self._arrived: list[RawMessage] = []
        self._woken = False
        self._waiter: asyncio.Future[None] | None = None
        self._deaf = False  # the feed has stopped
        self._gap = False  # the history is to be read on
        self._ended = False
        self._subscription: Subscription | None = None
        self._forget: Callable[[], None] | None = None

    async def open(self) -> None:
        """Listen from now on. A task that is submitted after this has no history to be read: see `batches`.

        Raises:
            NoServer: the connection is away.
        """
        if self._feed is None or not self._feed.listen(self._task_id, self):
            await self._subscribe()

    async def close(self) -> None:
        """Stop listening."""
        if self._feed is not None:
            self._feed.forget(self._task_id, self)
        if self._forget is not None:
            self._forget()
            self._forget = None
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._connection.unsubscribe(subscription)

    async def _subscribe(self) -> None:
        subject = subjects.live_task_events(self._task_id)
        self._subscription = await self._connection.subscribe_direct(subject, self._received)
        self._forget = self._connection.on_reconnect(self._missed)

    def end(self) -> None:
        """Let `batches` end, with what it has yielded so far."""
        self._ended = True
        self._wake()

    async def batches(self, after: int, *, heard_all: bool = False) -> AsyncGenerator[list[RawMessage], None]:
        """Yield the events after a sequence, until `end` is called. While the server is away it is waited for.

        `heard_all` says that all of them came after `open`, so that there is no history to be read.
        """
        self._gap = self._gap or not heard_all
        while not self._ended:
            batch = [message for message in await self._next(after) if message.sequence > after]
            if batch:
                after = batch[-1].sequence
                yield batch
            await self._wait()

    async def _next(self, after: int) -> list[RawMessage]:
        if self._deaf or self._gap:
            return await self._read_on(after)
        arrived, self._arrived = self._arrived, []
        return arrived

    async def _read_on(self, after: int) -> list[RawMessage]:
        try:
            if self._deaf:
                await self._subscribe()
                self._deaf = False
            self._gap = False
            self._arrived.clear()
            return await task_messages(self._connection, self._task_id, after)
        except NoServer:
            self._gap = True
            await asyncio.sleep(RETRY_S)
            self._wake()
            return []

    async def _wait(self) -> None:
        if self._subscription is None:  # a feed has no gaps
            await self._until_woken()
        else:
            await self._wait_for_a_while()
        self._woken = False

    async def _wait_for_a_while(self) -> None:
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await self._until_woken()
        except TimeoutError:
            self._gap = self._connection.connected

    async def _until_woken(self) -> None:
        # What an `asyncio.Event` does for one that waits, for less: each request that follows a task has one of these.
        if not self._woken:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def _wake(self) -> None:
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def heard(self, message: RawMessage) -> None:
        """Take the next event from the feed, or the wire."""
        if len(self._arrived) < BUFFER_MOST:
            self._arrived.append(message)
        else:
            self._gap = True
        self._wake()

    def interrupted(self) -> None:
        """Know that the feed has stopped: a subscription takes its place."""
        self._deaf = True
        self._wake()

    def _received(self, _subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        try:
            self.heard(raw_from_bytes(headers or b"", payload))
        except (KeyError, ValueError):  # not republished by the server: anybody may publish on a live subject
            self._missed()

    def _missed(self) -> None:
        self._gap = True
        self._wake()
