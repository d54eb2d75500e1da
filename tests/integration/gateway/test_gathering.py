"""Writes to a socket, gathered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bitinglip.gateway.gathering import MOST_BYTES, Gathering


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Gathering, socket.socket]]:
    """A transport, and the other end of its socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    with theirs:
        gathering = Gathering(transport, loop)
        yield gathering, theirs
        gathering.close()


async def received(end: socket.socket) -> bytes:
    async with asyncio.timeout(20):
        return await asyncio.get_running_loop().sock_recv(end, 2 * MOST_BYTES)


async def everything(end: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += await received(end)
    return found


async def test_what_is_written_in_one_turn_leaves_together_after_it() -> None:
    async with connected() as (transport, end):
        for part in (b"head ", b"body ", b"end"):
            transport.write(part)
        with pytest.raises(BlockingIOError):
            end.recv(100)
        assert await received(end) == b"head body end"
        transport.write(b"more")
        assert await received(end) == b"more"


async def test_much_leaves_at_once() -> None:
    """Else a writer that never waits would never be told that its reader is slow."""
    async with connected() as (transport, end):
        transport.write(b"first")
        transport.write(b"x" * MOST_BYTES)
        assert end.recv(5) == b"first"
        assert len(await everything(end, MOST_BYTES)) == MOST_BYTES
        transport.write(b"little")
        with pytest.raises(BlockingIOError):
            end.recv(100)


async def test_closing_sends_what_is_left() -> None:
    async with connected() as (transport, end):
        assert not transport.is_closing()
        transport.write(b"last words")
        transport.close()
        assert transport.is_closing()
        assert await received(end) == b"last words"
        assert await received(end) == b""
