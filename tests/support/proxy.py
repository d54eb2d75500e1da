"""A TCP proxy between a process of ours and nats-server, to be cut, held up, and healed by a test."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK = 65_536


class Proxy:
    """Passes connections on to a port of this machine, as long as the test lets it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._passing = asyncio.Event()
        self._refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        """Time that each piece takes."""
        self.port = 0

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"nats://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._passing.set()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop, and close what is open."""
        assert self._server is not None
        self._server.close()
        await self._close_all()

    async def cut(self) -> None:
        """Close all connections, and new ones at once."""
        self._refusing = True
        await self._close_all()

    def hold(self) -> None:
        """Let nothing through, and tell nobody: connections stay open, what is sent waits."""
        self._passing.clear()

    def forsake(self) -> None:
        """Leave the connections that are there in the dark for ever, and let new ones pass: they are half open."""
        self._passing = asyncio.Event()
        self._passing.set()

    def heal(self) -> None:
        """Let everything through again, what has waited first."""
        self._refusing = False
        self._passing.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.close()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:  # the server is away
            writer.close()
            return
        self._writers |= {writer, back}
        passing = self._passing
        for source, sink in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(source, sink, passing), name="proxy")
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passing: asyncio.Event) -> None:
        try:
            while piece := await source.read(CHUNK):
                await passing.wait()
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)  # sleep-ok: the delay is what the proxy is for
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def _close_all(self) -> None:
        for pump in list(self._pumps):
            pump.cancel()
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
