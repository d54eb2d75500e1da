"""The answer that goes on, on a real server and real sockets, with frames of the test's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Gauge
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from bitinglip.errors import NoServer
from bitinglip.gateway.eventstream import EventStream, LastFrames
from bitinglip.gateway.gathering import GatheringProtocol

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-store\r\n"
    b"connection: keep-alive\r\n"
    b"x-accel-buffering: no\r\n"
    b"location: /here\r\n"
)
CHUNKS = 1000
CHUNK = b"x" * 65_536


class Stream:
    """An app that answers everything with one stream, and sees how that comes to its end."""

    def __init__(self, frames: Callable[[Stream], AsyncGenerator[bytes]], heartbeat_s: float = 60) -> None:
        self.go_on = asyncio.Event()
        self.closed = asyncio.Event()
        self.begun = 0
        self.cleaned = 0
        self.yielded = 0
        self.open_streams = Gauge("open", "Open streams.", registry=CollectorRegistry())
        self.state = ServerState()
        self._frames = frames
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = EventStream(
            self._watched(), self._heartbeat_s, self.open_streams, {"Location": "/here"}, closed=self._close
        )
        await stream(scope, receive, send)

    @property
    def open(self) -> float:
        """How many streams go on."""
        return self.open_streams._value.get()  # pyright: ignore[reportPrivateUsage]

    async def _close(self) -> None:
        self.closed.set()

    async def _watched(self) -> AsyncGenerator[bytes]:
        self.begun += 1
        try:
            async for chunk in self._frames(self):
                self.yielded += 1
                yield chunk
        finally:
            self.cleaned += 1


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def asked(app: Stream, method: str = "GET") -> AsyncIterator[Connection]:
    """Serve the app, and ask it for its stream."""
    config = uvicorn.Config(app, http=GatheringProtocol, ws="none", lifespan="off", log_config=None)
    config.load()

    def protocol() -> GatheringProtocol:
        return GatheringProtocol(config, app.state, {})

    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    try:
        writer.write(f"{method} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        yield reader, writer
    finally:
        writer.close()
        server.close()


async def until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    async with asyncio.timeout(20):
        return await reader.readuntil(end)


async def happened(event: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await event.wait()


async def waits(stream: Stream) -> AsyncGenerator[bytes]:
    yield b"data: 1\n\n"
    await stream.go_on.wait()
    yield LastFrames(b"data: 2\n\n")
    raise AssertionError("nothing is asked for after the last one")


async def flood(stream: Stream) -> AsyncGenerator[bytes]:
    for _ in range(CHUNKS):
        await asyncio.sleep(0)  # sleep-ok: a turn of the loop, as any source of frames takes one now and then
        yield CHUNK


async def test_frames_come_in_their_order_and_the_last_one_ends_the_answer() -> None:
    app = Stream(waits)
    async with asked(app) as (reader, _):
        assert (
            await until(reader, b"data: 1\n\n\r\n") == HEAD + b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
        )
        assert app.open == 1
        app.go_on.set()
        assert await until(reader, b"0\r\n\r\n") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        await happened(app.closed)
        assert (app.cleaned, app.open) == (1, 0)


async def test_frames_may_end_by_themselves() -> None:
    async def two(_: Stream) -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        yield b"data: 2\n\n"

    async with asked(Stream(two)) as (reader, _):
        answer = await until(reader, b"0\r\n\r\n")
    assert answer.endswith(b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\n\r\n")


async def test_a_connection_serves_one_stream_after_the_other() -> None:
    app = Stream(waits)
    app.go_on.set()
    async with asked(app) as (reader, writer):
        first = await until(reader, b"0\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await until(reader, b"0\r\n\r\n") == first
    assert app.cleaned == 2


async def test_heartbeats_fill_the_quiet_and_stop_with_the_stream() -> None:
    app = Stream(waits, heartbeat_s=0.02)
    async with asked(app) as (reader, writer):
        await until(reader, b"data: 1\n\n\r\n")
        for _ in range(3):
            assert await until(reader, b"\n\n\r\n") == b"d\r\n: heartbeat\n\n\r\n"
        app.go_on.set()
        rest = await until(reader, b"0\r\n\r\n")
        assert rest.replace(b"d\r\n: heartbeat\n\n\r\n", b"") == b"9\r\ndata: 2\n\n\r\n0\r\n\r\n"
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await until(reader, b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_to_head_the_answer_is_what_comes_before_the_stream() -> None:
    app = Stream(waits)
    async with asked(app, "HEAD") as (reader, writer):
        assert await until(reader, b"\r\n\r\n") == HEAD + b"\r\n"
        await happened(app.closed)
        assert (app.begun, app.open) == (0, 0)
        writer.write(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await until(reader, b"\r\n\r\n") == HEAD + b"\r\n"


async def test_a_caller_that_leaves_ends_a_stream_that_waits(eventually: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = Stream(waits)
    async with asked(app) as (reader, writer):
        await until(reader, b"data: 1\n\n\r\n")
        writer.close()
        await happened(app.closed)
        assert (app.cleaned, app.open) == (1, 0)
        await eventually(lambda: not app.state.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("heartbeat_s", [0.01, 60])
async def test_a_caller_that_does_not_read_holds_the_stream_back_until_it_leaves(
    heartbeat_s: float, eventually: Any
) -> None:
    app = Stream(flood, heartbeat_s)
    async with asked(app) as (_, writer):
        await eventually(lambda: app.yielded > 1)
        assert app.yielded < CHUNKS
        writer.transport.abort()
        await happened(app.closed)
        assert app.yielded < CHUNKS
        assert (app.cleaned, app.open) == (1, 0)


async def test_a_slow_caller_gets_all_of_it() -> None:
    async with asked(Stream(flood)) as (reader, _):
        answer = await until(reader, b"\r\n\r\n")
        sizes: list[int] = []
        while size := int(await until(reader, b"\r\n"), 16):
            assert await reader.readexactly(size + 2) == CHUNK + b"\r\n"
            sizes.append(size)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(sizes) == CHUNKS


async def test_a_log_that_is_gone_is_told_of_and_ends_the_answer() -> None:
    async def gone(_: Stream) -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise NoServer(problem="away")

    async with asked(Stream(gone)) as (reader, _):
        assert b"\n: the event log cannot be reached; connect" in await until(reader, b"0\r\n\r\n")


async def test_a_defect_cuts_the_stream_off(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Stream) -> AsyncGenerator[bytes]:
        yield b"data: 1\n\n"
        raise ZeroDivisionError

    app = Stream(broken)
    async with asked(app) as (reader, _):
        async with asyncio.timeout(20):
            assert not (await reader.read()).endswith(b"0\r\n\r\n")
        await happened(app.closed)
        assert (app.cleaned, app.open) == (1, 0)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError]


async def test_a_request_that_is_cancelled_is_cleaned_up_and_stays_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    """As uvicorn does it with those that are open when its patience with them ends."""
    app = Stream(waits)
    async with asked(app) as (reader, _):
        await until(reader, b"data: 1\n\n\r\n")
        (request,) = app.state.tasks
        request.cancel()
        await happened(app.closed)
        assert (app.cleaned, app.open) == (1, 0)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [asyncio.CancelledError]
