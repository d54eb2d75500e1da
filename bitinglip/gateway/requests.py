"""Reading requests: bounded JSON bodies, declared query parameters, ids, preferences."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request

from bitinglip.errors import InvalidInput, MalformedBody, PayloadTooLarge, UnsupportedMediaType
from bitinglip.ids import TaskId, is_ulid

SEQUENCE_MOST = 2**63 - 1
_JSON_TYPE = re.compile(r"application/(?:json|[A-Za-z0-9.+-]+\+json)", re.IGNORECASE)
_WAIT = re.compile(r"\bwait\s*=\s*\"?(\d{1,9})\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d{1,30}")


async def read_json(request: Request, limit_bytes: int) -> bytes:
    """Return the body, which its sender calls JSON, without reading more than the limit.

    Raises:
        UnsupportedMediaType, PayloadTooLarge: see there.
        MalformedBody: the caller went away before its end.
    """
    media_type = header(request, b"content-type").partition(";")[0].strip()
    if _JSON_TYPE.fullmatch(media_type) is None:
        raise UnsupportedMediaType(media_type=media_type[:200])
    chunks = [chunk async for chunk in _chunks(request, limit_bytes)]
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def read_lines(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body's lines as they come, without reading more than the limit.

    Raises:
        PayloadTooLarge: it has more bytes than the limit.
        MalformedBody: the caller went away before its end.
    """
    rest = b""
    async for chunk in _chunks(request, limit_bytes):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
    yield rest


async def read_into(request: Request, path: Path, limit_bytes: int) -> int:
    """Write the body into a file as it comes; returns its size in bytes.

    Raises:
        PayloadTooLarge: it has more bytes than the limit.
        MalformedBody: the caller went away before its end.
    """
    size = 0
    with path.open("wb") as file:
        async for chunk in _chunks(request, limit_bytes):
            size += len(chunk)
            await asyncio.to_thread(file.write, chunk)
    return size


async def read_pieces(request: Request, limit_bytes: int, piece_bytes: int) -> AsyncIterator[bytes]:
    """Yield the body in pieces of about this size, without reading more than the limit.

    What has come before the caller went away is yielded before that is said.

    Raises:
        PayloadTooLarge: it has more bytes than the limit.
        MalformedBody: the caller went away before its end.
    """
    piece = bytearray()
    try:
        async for chunk in _chunks(request, limit_bytes):
            piece += chunk
            if len(piece) >= piece_bytes:
                yield bytes(piece)
                piece.clear()
    except MalformedBody:
        yield bytes(piece)
        raise
    yield bytes(piece)


async def _chunks(request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
    too_large = PayloadTooLarge(what="The body", limit_bytes=limit_bytes)
    declared = header(request, b"content-length")
    if declared.isdecimal() and int(declared) > limit_bytes:
        raise too_large
    size, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise MalformedBody(problem="it ends before its announced length")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit_bytes:
            raise too_large
        yield chunk
        more = message.get("more_body", False)


def header(request: Request, name: bytes) -> str:
    """Return a header's value, by its name in lower case; empty if it was not sent."""
    value: bytes | None = request.scope["header_map"].get(name)
    return "" if value is None else value.decode("latin-1")


def only(request: Request, names: Iterable[str] = (), prefix: str | None = None) -> None:
    """Refuse query parameters that are not among the names and don't begin with the prefix.

    Raises:
        InvalidInput: it names the parameter.
    """
    if not request.scope["query_string"]:
        return
    known = tuple(names)
    for name in request.query_params:
        if name not in known and not (prefix is not None and name.startswith(prefix)):
            listed = ", ".join([*known, *([f"{prefix}<name>"] if prefix else [])]) or "none"
            raise InvalidInput(field=name[:100], problem=f"unknown parameter; known here: {listed}")


def words(request: Request, name: str) -> list[str]:
    """Return a parameter's values, given repeatedly or with commas between them."""
    return [word for value in request.query_params.getlist(name) for word in value.split(",") if word]


def one(request: Request, name: str) -> str | None:
    """Return a parameter's value; none if it is not given.

    Raises:
        InvalidInput: it is given twice.
    """
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise InvalidInput(field=name, problem="given more than once")
    return values[0] if values else None


def number(name: str, text: str | None, default: int, least: int, most: int) -> int:
    """Read a whole number in its bounds.

    Raises:
        InvalidInput: it is none, or outside.
    """
    if text is None:
        return default
    if _NUMBER.fullmatch(text) is None or not least <= int(text) <= most:
        raise InvalidInput(field=name, problem=f"must be a whole number from {least} to {most}")
    return int(text)


def moment(name: str, text: str | None) -> datetime | None:
    """Read an ISO 8601 time with its zone.

    Raises:
        InvalidInput: it is none.
    """
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        raise InvalidInput(field=name, problem="must be an ISO 8601 time with its zone, as in 2026-01-31T12:00:00Z")
    return at.astimezone(UTC)


def choice(name: str, text: str | None, default: str, among: Iterable[str]) -> str:
    """Read one of a few words.

    Raises:
        InvalidInput: it is none of them.
    """
    known = tuple(among)
    if text is not None and text not in known:
        raise InvalidInput(field=name, problem=f"must be one of {', '.join(known)}")
    return default if text is None else text


def task_id_of(request: Request) -> TaskId:
    """Return the task id in the path.

    Raises:
        InvalidInput: it is not an id.
    """
    return checked_task_id(request.path_params["task_id"])


def checked_task_id(text: str) -> TaskId:
    """Return the text as a task id.

    Raises:
        InvalidInput: it is not one.
    """
    if not is_ulid(text):
        raise InvalidInput(field="task_id", problem="must be a ULID: 26 characters, as in 01JZ0000000000000000000000")
    return TaskId(text)


def resume_after(request: Request) -> int | None:
    """Return the sequence after which the caller wants events: `Last-Event-ID`, else `after`; none if neither is given.

    A reader that connects again sends the address that it was given, `after` included, and how far it came since.

    Raises:
        InvalidInput: it is not a sequence.
    """
    after = one(request, "after")
    given = None if after is None else number("after", after, 0, 0, SEQUENCE_MOST)
    seen = header(request, b"last-event-id")
    return number("Last-Event-ID", seen, 0, 0, SEQUENCE_MOST) if seen else given


def wants(request: Request, media_type: str) -> bool:
    """Tell whether the caller's `Accept` names this media type."""
    return media_type in header(request, b"accept")


def preferred_wait(request: Request) -> int | None:
    """Return the seconds of `Prefer: wait=n` (RFC 7240); a preference that cannot be read is none."""
    found = _WAIT.search(header(request, b"prefer"))
    return None if found is None else int(found[1])
