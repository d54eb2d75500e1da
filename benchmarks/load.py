"""How many requests a second does a gateway take? A lean HTTP/1.1 load generator on raw sockets.

It costs a few microseconds a request, so that the gateway is what is measured:

    python -m benchmarks.load --port 8420 --connections 32 --requests 20000
    python -m benchmarks.load --port 8420 --follow --requests 300      (submit to terminal, one at a time, over SSE)

The second needs a worker that serves the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import time
from collections.abc import Sequence

LENGTH = b"content-length: "
TERMINAL = (b"event: task.succeeded", b"event: task.dead_lettered", b"event: task.cancelled", b"event: task.expired")
ECHO = json.dumps({"kind": "echo", "model": "echo", "params": {"message": "hello"}}).encode()


class RefusedError(Exception):
    """The server answered with another status than 2xx."""


async def post_many(host: str, port: int, path: str, body: bytes, connections: int, requests: int) -> list[float]:
    """Send the same POST many times over keep-alive connections, one in flight on each; returns each one's seconds.

    Raises:
        RefusedError: an answer is not 2xx.
    """
    request = post(host, port, path, body)
    shares = [requests // connections + (index < requests % connections) for index in range(connections)]
    lists = await asyncio.gather(*[_Connection.run(host, port, request, share) for share in shares if share])
    return [latency for latencies in lists for latency in latencies]


class Follower:
    """A client with one keep-alive connection: submits a task, follows it in the same answer to its end, and again."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, path: str, body: bytes) -> float:
        """Run one task; returns the seconds to its terminal event.

        Raises:
            RefusedError: the answer is no stream of events, or ends without a terminal one.
        """
        started = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(post(*self._address, path, body, ("Accept: text/event-stream",)))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 2") or b"transfer-encoding: chunked" not in head:
            raise RefusedError(head.decode(errors="replace"))
        ended = 0.0
        while size := int(await reader.readuntil(b"\r\n"), 16):
            chunk = await reader.readexactly(size + 2)
            if any(mark in chunk for mark in TERMINAL):
                ended = time.perf_counter()
        await reader.readexactly(2)
        if not ended:
            raise RefusedError("the stream ended without a terminal event")
        return ended - started

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


class Poster:
    """A client with one keep-alive connection: posts, waits for the answer, and again."""

    def __init__(self, host: str, port: int, headers: Sequence[str] = ()) -> None:
        self._address = host, port
        self._headers = headers
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> bytes:
        """Post a body; returns the answer's.

        Raises:
            RefusedError: the answer is not 2xx.
        """
        if self._streams is None or self._streams[0].at_eof():  # the server closes what has been idle
            await self.close()
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(post(*self._address, path, body, self._headers))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if not head.startswith(b"http/1.1 2"):
            raise RefusedError(head.decode(errors="replace"))
        at = head.index(LENGTH) + len(LENGTH)
        return await reader.readexactly(int(head[at : head.index(b"\r", at)]))

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            await self._streams[1].wait_closed()


async def follow_one(host: str, port: int, path: str, body: bytes) -> float:
    """Submit a task on a new connection and follow its events in the same answer; returns the seconds to its end."""
    follower = Follower(host, port)
    try:
        return await follower.run(path, body)
    finally:
        await follower.close()


def post(host: str, port: int, path: str, body: bytes, headers: Sequence[str] = ()) -> bytes:
    """Return a request's bytes."""
    own = (f"POST {path} HTTP/1.1", f"Host: {host}:{port}", "Content-Type: application/json")
    return "\r\n".join([*own, *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


def summary(latencies: Sequence[float], elapsed_s: float) -> dict[str, object]:
    """Return the figures of a run."""
    ranked = sorted(latencies)
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "requests": len(ranked),
        "per_second": round(len(ranked) / elapsed_s),
        "median_ms": round(statistics.median(ranked) * 1000, 3),
        "p99_ms": round(ranked[int(len(ranked) * 0.99)] * 1000, 3),
        "max_ms": round(ranked[-1] * 1000, 3),
    }


class _Connection(asyncio.Protocol):
    """One keep-alive connection: the next request goes out as soon as the answer to the last one is whole."""

    def __init__(self, request: bytes, count: int) -> None:
        self._request = request
        self._left = count
        self._buffer = b""
        self._sent_at = 0.0
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def run(cls, host: str, port: int, request: bytes, count: int) -> list[float]:
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(lambda: cls(request, count), host, port)
        try:
            await connection.done
        finally:
            transport.close()
        return connection.latencies

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.index(LENGTH) + len(LENGTH)
        size = int(head[at:].partition(b"\r\n")[0])
        if len(self._buffer) >= end + 4 + size:
            self._answered(head)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))

    def _send(self) -> None:
        self._left -= 1
        self._buffer = b""
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def _answered(self, head: bytes) -> None:
        self.latencies.append(time.perf_counter() - self._sent_at)
        if not head.startswith(b"http/1.1 2"):
            self.done.set_exception(RefusedError(self._buffer.decode(errors="replace")))
        elif self._left:
            self._send()
        else:
            self.done.set_result(None)


async def _main(asked: argparse.Namespace) -> None:
    body = asked.body.encode()
    started = time.perf_counter()
    if asked.follow:
        latencies = [await follow_one(asked.host, asked.port, asked.path, body) for _ in range(asked.requests)]
    else:
        latencies = await post_many(asked.host, asked.port, asked.path, body, asked.connections, asked.requests)
    print(json.dumps(summary(latencies, time.perf_counter() - started)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8420)
    parser.add_argument("--path", default="/v1/tasks")
    parser.add_argument("--body", default=ECHO.decode())
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--follow", action="store_true", help="follow each task to its end, one at a time")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_main(_arguments()))
