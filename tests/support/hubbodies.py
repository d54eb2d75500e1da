"""Files over HTTP in large pieces, in part, slowly, cut off, or wrong; and what can go wrong with other answers."""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE_BYTES = 2**20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_OTHER = bytes(byte ^ 0x55 for byte in range(256))


@dataclass
class Fault:
    """What goes wrong with answers that send files, or with any if a `status` is given."""

    path: str = "*"
    """Pattern of `org/name/path`, or of the address of what is no file, as `/api/models*`."""
    times: int | None = None
    """How often it still goes wrong; none: until the fault is mended."""
    status: int | None = None
    """The answer is an error of this status."""
    body: bytes | None = None
    """What the answer with that status says instead."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    """What the answer with that status has besides."""
    bytes_per_s: float | None = None
    """The body comes slowly."""
    cut_after: int | None = None
    """The connection is closed after so many bytes of the body."""
    stall_after: int | None = None
    """After so many bytes nothing more comes, until the fault is mended."""
    wrong: bool = False
    """The content is another, of the same length."""
    whole: bool = False
    """Ranges are not heeded."""


class Ledger(Protocol):
    """Who counts what is sent."""

    sent: Counter[str]
    stalled: Counter[str]
    faults: list[Fault]


def span(asked: str | None, size: int) -> tuple[int | None, int]:
    """Return the first byte of a range and the one behind its last; none if it cannot be had."""
    found = _RANGE.fullmatch(asked or "")
    if found is None:
        return 0, size
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    return (start, stop) if start < stop else (None, 0)


class FileBody(Response):
    """A part of a file, and what goes wrong with it."""

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        place: Path,
        part: tuple[int, int],
        fault: Fault | None,
        status: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self._ledger, self._name, self._place, self._part, self._fault = ledger, name, place, part, fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = asyncio.ensure_future(_gone(receive))
        fd = os.open(self._place, os.O_RDONLY)
        try:
            whole = await self._send_pieces(fd, gone, send)
        finally:
            os.close(fd)
            gone.cancel()
        if whole:  # else uvicorn closes the connection, as what was told to come did not
            await send({"type": "http.response.body", "body": b""})

    async def _send_pieces(self, fd: int, gone: asyncio.Future[None], send: Send) -> bool:
        """Send piece after piece; tells whether that was all."""
        at, stop = self._part
        fault, start = self._fault, at
        while at < stop and not gone.done():
            most = self._room(at - start)
            if most == 0:
                if fault and fault.cut_after is not None and at - start >= fault.cut_after:
                    return False
                await self._stall(gone)
                continue
            piece = os.pread(fd, min(most, stop - at), at)
            if fault and fault.wrong:
                piece = piece.translate(_OTHER)
            if fault and fault.bytes_per_s:
                await asyncio.sleep(len(piece) / fault.bytes_per_s)  # sleep-ok: the slowness that a test asked for
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)  # sleep-ok: sending to a client that is gone does not wait, and this notices it
            if not gone.done():
                self._ledger.sent[self._name] += len(piece)
            at += len(piece)
        return at >= stop

    def _room(self, done: int) -> int:
        """Return how many bytes may be sent at once; zero: it ends or stalls here."""
        fault = self._fault
        if fault is None:
            return PIECE_BYTES
        bounds = [fault.stall_after if self._stalls else None, fault.cut_after]
        piece = min(PIECE_BYTES, max(1, int(fault.bytes_per_s / 20))) if fault.bytes_per_s else PIECE_BYTES
        return max(0, min([piece, *[bound - done for bound in bounds if bound is not None]]))

    @property
    def _stalls(self) -> bool:
        return any(fault is self._fault for fault in self._ledger.faults)

    async def _stall(self, gone: asyncio.Future[None]) -> None:
        """Wait until the fault is mended, or the client gone."""
        self._ledger.stalled[self._name] += 1
        while self._stalls and not gone.done():
            await asyncio.wait({gone}, timeout=0.02)
        self._ledger.stalled[self._name] -= 1


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
