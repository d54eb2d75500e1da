"""Fewer writes to a socket: what is written in one turn of the event loop leaves together.

uvicorn writes an answer's head by itself, its body after that, and each part of a stream as it comes, and uvloop hands
each to the kernel at once. A write to a socket, with the reader that it wakes, costs as much as a good part of the
request.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES = 64 * 1024
"""What may wait here; with so much the transport is given it at once, and tells when its reader is slow."""


class GatheringProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, with what it writes gathered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve a connection."""
        super().connection_made(Gathering(cast("asyncio.Transport", transport), self.loop))


class Gathering(asyncio.Transport):
    """A transport that writes once a turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._waiting: list[bytes] = []
        self._size = 0

    def write(self, data: Any) -> None:
        """Write, soon."""
        self._waiting.append(data)
        self._size += len(data)
        if self._size >= MOST_BYTES:
            self._flush()
        elif len(self._waiting) == 1:
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close the connection when all that was written has left."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether it is closed, or about to be."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of the connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Read nothing more for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        self._transport.resume_reading()

    def _flush(self) -> None:
        if not self._waiting:
            return
        data = self._waiting[0] if len(self._waiting) == 1 else b"".join(self._waiting)
        self._waiting.clear()
        self._size = 0
        self._transport.write(data)
