"""Events on their way out: server-sent events (https://html.spec.whatwg.org/#server-sent-events) and JSON.

The `id` of an event is its sequence in the stream, its `event` the type, and its `data` the CloudEvent as the log holds
it: the bytes are passed on, not decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from contextlib import aclosing
from typing import Any, TypeVar

import orjson
from sse_starlette.event import ServerSentEvent
from starlette.responses import Response

from bitinglip.errors import CorruptEvent
from bitinglip.events.ending import end
from bitinglip.events.envelope import RawMessage
from bitinglip.gateway.context import Gateway
from bitinglip.gateway.eventstream import EventStream, LastFrames
from bitinglip.gateway.responses import json

CANCEL_S = 1.0
"""Longer than closing a reader takes: asking again sooner would cut its cleaning short."""
_T = TypeVar("_T")


def stream(
    gateway: Gateway,
    batches: AsyncGenerator[Seq[RawMessage]],
    headers: Mapping[str, str] | None = None,
    *,
    ends: Callable[[RawMessage], bool] = lambda _: False,
    closed: Callable[[], Awaitable[None]] | None = None,
    beside: AsyncGenerator[bytes] | None = None,
) -> EventStream:
    """Answer with these events, until they end or the caller leaves; `closed` is called then.

    `ends` tells the event after which no other one comes; `beside` has other events, written already, for the meantime.
    """
    frames = _frames(batches, ends)
    return frames_stream(gateway, frames if beside is None else together(frames, beside), headers, closed=closed)


def frames_stream(
    gateway: Gateway,
    frames: AsyncGenerator[bytes],
    headers: Mapping[str, str] | None = None,
    *,
    closed: Callable[[], Awaitable[None]] | None = None,
) -> EventStream:
    """Answer with events that are written already."""
    return EventStream(frames, gateway.settings.gateway.sse_heartbeat_s, gateway.metrics.sse_clients, headers, closed)


def nothing_more() -> Response:
    """Answer that there is nothing after that event: an EventSource stops connecting again (status 204)."""
    return Response(status_code=204)


def frame(message: RawMessage) -> bytes:
    """Write one event."""
    head = f"id: {message.sequence}\nevent: {type_of(message)}\ndata: ".encode()
    return head + one_line(message.payload) + b"\n\n"


def unnumbered(message: RawMessage) -> bytes:
    """Write an event of another stream than the one that is answered with: a reader does not resume after it."""
    return f"event: {type_of(message)}\ndata: ".encode() + one_line(message.payload) + b"\n\n"


def told(name: str, data: Any) -> bytes:
    """Write an event that is none of the log's, and so has no sequence."""
    return ServerSentEvent(orjson.dumps(data).decode(), event=name, sep="\n").encode()


def json_list(messages: Iterable[RawMessage]) -> Response:
    """Answer with the events as a JSON array; each has its sequence as the CloudEvents attribute `sequence`.

    Raises:
        CorruptEvent: one of them is no JSON object.
    """
    return json([_numbered(message) for message in messages])


def type_of(message: RawMessage) -> str:
    """Return the event's type, which its subject tells: `bl.<what>.<id>.<event>[...]`; a foreign one's is all of it."""
    parts = message.subject.split(".", 4)
    return f"{parts[1]}.{parts[3]}" if len(parts) > 3 else message.subject


def one_line(payload: bytes) -> bytes:
    """Return JSON on one line: a line's end can only be white space in it. What BitingLip writes is on one already."""
    return b" ".join(payload.splitlines()) if b"\n" in payload or b"\r" in payload else payload


async def until_closed(source: AsyncGenerator[_T], closing: asyncio.Event) -> AsyncGenerator[_T]:
    """Yield what the source yields, until it ends or the gateway closes; then the source is closed."""
    closed = asyncio.ensure_future(closing.wait())
    following: asyncio.Future[_T | None] | None = None
    try:
        while True:
            following = asyncio.ensure_future(_next(source))
            await asyncio.wait((following, closed), return_when=asyncio.FIRST_COMPLETED)
            item = following.result() if following.done() else None
            if item is None:
                return
            yield item
    finally:
        closed.cancel()
        await stop(following)
        await source.aclose()


async def together(main: AsyncGenerator[bytes], beside: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the pieces of two sources as they come, until the main one ends; then both are closed."""
    following: dict[AsyncGenerator[bytes], asyncio.Future[bytes | None]] = {}
    try:
        following = {source: asyncio.ensure_future(_next(source)) for source in (main, beside)}
        while main in following:
            await asyncio.wait(following.values(), return_when=asyncio.FIRST_COMPLETED)
            for source, future in list(following.items()):
                if not future.done():
                    continue
                del following[source]
                if (piece := future.result()) is not None:
                    yield piece
                    following[source] = asyncio.ensure_future(_next(source))
    finally:
        for future in following.values():
            await stop(future)
        await beside.aclose()
        await main.aclose()


async def stop(following: asyncio.Future[Any] | None) -> None:
    """Cancel what waits for the next item and see it end, however it does."""
    await end(lambda: [following], CANCEL_S)
    if following is not None and not following.cancelled():
        following.exception()


async def _frames(
    batches: AsyncGenerator[Seq[RawMessage]], ends: Callable[[RawMessage], bool]
) -> AsyncGenerator[bytes]:
    async with aclosing(batches):
        async for batch in batches:
            chunk = b"".join(map(frame, batch))
            yield LastFrames(chunk) if ends(batch[-1]) else chunk


def _numbered(message: RawMessage) -> dict[str, Any]:
    try:
        return {"sequence": str(message.sequence)} | orjson.loads(message.payload)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise CorruptEvent(where=f"{message.subject}:{message.sequence}", problem=str(error)) from error


async def _next(source: AsyncIterator[_T]) -> _T | None:
    return await anext(source, None)
