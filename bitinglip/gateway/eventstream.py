"""An answer that goes on: frames as they come, a heartbeat while it is quiet, an end as soon as the caller leaves.

Plain ASGI, for a path that each followed task takes: the frames are sent by the request's own task, and one more hears
of the caller's leaving. What only a long stream needs, its heartbeats, costs a short one a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing

from prometheus_client import Gauge
from sse_starlette.event import ServerSentEvent
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitinglip.errors import NoServer

MEDIA_TYPE = "text/event-stream"
HEADERS = (
    (b"content-type", f"{MEDIA_TYPE}; charset=utf-8".encode()),
    (b"cache-control", b"no-store"),
    (b"connection", b"keep-alive"),
    (b"x-accel-buffering", b"no"),
)
"""The last one keeps nginx from gathering what is sent."""
HEARTBEAT = ServerSentEvent(comment="heartbeat", sep="\n").encode()
GONE = ServerSentEvent(comment="the event log cannot be reached; connect again with Last-Event-ID", sep="\n").encode()


class LastFrames(bytes):
    """A chunk after which the stream ends: both leave together, in one write instead of two."""


class EventStream(Response):
    """Answers with server-sent events; `closed` is called when that is over, however it came to its end."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes],
        heartbeat_s: float,
        open_streams: Gauge,
        headers: Mapping[str, str] | None = None,
        closed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`open_streams` counts those that go on now."""
        self.status_code = 200
        self.background = None
        more = (headers or {}).items()
        self.raw_headers = [*HEADERS, *((name.lower().encode(), value.encode("latin-1")) for name, value in more)]
        self._frames = frames
        self._heartbeat_s = heartbeat_s
        self._open_streams = open_streams
        self._closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; to `HEAD`, only what comes before it."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if scope["method"] == "HEAD":
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return
            with self._open_streams.track_inprogress():
                await _Flow(self._frames, send, self._heartbeat_s).run(receive)
        finally:
            if self._closed is not None:
                await self._closed()


class _Flow:
    """One stream on its way to its caller."""

    def __init__(self, frames: AsyncGenerator[bytes], send: Send, heartbeat_s: float) -> None:
        self._frames = frames
        self._send = send
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._sender = asyncio.current_task()
        self._turn = asyncio.Lock()
        self._over = False
        self._ended_by: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None

    async def run(self, receive: Receive) -> None:
        """Send the frames to their end, or until the caller has left."""
        leaving = self._loop.create_task(_left(receive))
        leaving.add_done_callback(self._end)
        timer = self._loop.call_later(self._heartbeat_s, self._begin_to_beat)
        try:
            await self._send_all()
        except asyncio.CancelledError:
            assert self._sender is not None
            if self._ended_by is None or self._sender.uncancel():
                raise
            self._ended_by.result()
        finally:
            self._over = True
            timer.cancel()
            leaving.cancel()
            if self._beating is not None:
                self._beating.cancel()

    async def _send_all(self) -> None:
        async with aclosing(self._frames):
            last = b""
            try:
                async for chunk in self._frames:
                    if isinstance(chunk, LastFrames):
                        last = chunk
                        break
                    await self._write(chunk)
            except NoServer:
                last = GONE
            await self._write(last, more=False)

    async def _write(self, chunk: bytes, *, more: bool = True) -> None:
        async with self._turn:  # a caller that is slow to read holds the next frame, and a heartbeat, back
            if not self._over:
                self._over = not more
                await self._send({"type": "http.response.body", "body": chunk, "more_body": more})

    def _begin_to_beat(self) -> None:
        self._beating = self._loop.create_task(self._beat())
        self._beating.add_done_callback(self._end)

    async def _beat(self) -> None:
        while True:
            await self._write(HEARTBEAT)
            await asyncio.sleep(self._heartbeat_s)

    def _end(self, companion: asyncio.Task[None]) -> None:
        """End the stream: the caller has left, or cannot be reached, as what the companion raised says."""
        if not self._over and not companion.cancelled():
            assert self._sender is not None
            self._over, self._ended_by = True, companion
            self._sender.cancel()


async def _left(receive: Receive) -> None:
    """Wait until the caller has left, or has got all."""
    while (await receive())["type"] != "http.disconnect":
        pass
