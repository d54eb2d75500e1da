"""Callers that leave before they have their answer: what is done for them ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitinglip.events.ending import CLEANING_S, end

_T = TypeVar("_T")


class CallerLeft(Exception):
    """Nobody waits for the answer any more."""


async def while_here(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Return what the work returns; the body of the request must have been read.

    Raises:
        CallerLeft: the caller has left; the work is cancelled.
    """
    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left(request.receive))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise CallerLeft
        return task.result()
    finally:
        await end(lambda: [leaving, task], CLEANING_S)


async def left(receive: Receive) -> None:
    """Wait until the caller has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def nobody() -> Response:
    """Return the answer to a caller who has left, which nobody gets: it is counted by its status alone."""
    return Response(status_code=499)


class Pieces(Response):
    """An answer that is sent as it is made; its making ends when the caller leaves.

    One that cannot be brought to its end breaks the connection, so that nobody takes a part for the whole.
    """

    def __init__(self, pieces: AsyncGenerator[bytes], headers: Mapping[str, str], media_type: str) -> None:
        self._pieces = pieces
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(lambda: [leaving, sending], CLEANING_S)
        if not sending.cancelled():
            sending.result()

    async def _send(self, send: Send) -> None:
        async with aclosing(self._pieces):
            async for piece in self._pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
