"""The worker's end of the socket to its node agent: commands come in, what the worker holds goes out.

What was written is in the socket when the worker is killed, so the agent knows which work messages to hand back. A
message is a line of JSON. Changes within one turn of the loop travel together, so that a batch is one line; an agent
that does not read is not waited for: once it has read on, the next change brings it the whole list.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from typing import Any

import orjson

BEHIND_BYTES = 1 << 20
"""Unread by the agent: what changes is no longer told until it has read on."""
LINE_BYTES = 1 << 24


class Tether:
    """One end of the socket; the agent ends the worker by closing the other one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._held: set[str] = set()
        self._new: set[str] = set()
        self._gone: set[str] = set()
        self._scheduled = False
        self._behind = False

    @classmethod
    async def open(cls, fd: int) -> Tether:
        """Take the socket that the agent left us as this descriptor."""
        return cls(*await asyncio.open_unix_connection(sock=socket.socket(fileno=fd), limit=LINE_BYTES))

    def hold(self, reply: str) -> None:
        """Tell that we hold the work message that is acked there."""
        if reply not in self._held:
            self._held.add(reply)
            self._new.add(reply)
            self._schedule()

    def release(self, reply: str) -> None:
        """Tell that we hold it no more."""
        if reply in self._held:
            self._held.discard(reply)
            if reply in self._new:
                self._new.discard(reply)
            else:
                self._gone.add(reply)
                self._schedule()

    def say(self, **message: Any) -> None:
        """Tell the agent something else."""
        self._write(message)

    async def commands(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the agent's commands; ends when the agent is gone."""
        while line := await self._reader.readline():
            yield orjson.loads(line)

    def close(self) -> None:
        """Let go of the socket."""
        self._writer.close()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._scheduled = False
        if self._writer.transport.get_write_buffer_size() > BEHIND_BYTES:
            self._behind = True
        elif self._behind:
            self._behind = False
            self._write({"all": list(self._held)})
        elif self._new or self._gone:
            self._write({"held": list(self._new), "released": list(self._gone)})
        self._new.clear()
        self._gone.clear()

    def _write(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(message) + b"\n")
