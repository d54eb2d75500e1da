"""Errors as RFC 9457 problem details: what went wrong, and what to do."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response

from bitinglip.errors import BitingLipError, KeyFull, KeyMissing, QueueFull, Unavailable

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:bitinglip:error:"
DETAIL_MOST = 2_000
"""Characters of a detail; what a caller sent is quoted in it."""


def problem_type(error: type[BitingLipError]) -> str:
    """Return the `type` of this class's problems."""
    return TYPE_PREFIX + error.code


def title_of(error: type[BitingLipError]) -> str:
    """Return the `title` of this class's problems: its code in words."""
    return error.code.replace("_", " ").capitalize()


def problem(error: BitingLipError, request_id: str) -> dict[str, Any]:
    """Return an error as problem details: the RFC's members, the remedy, and the error's own fields."""
    fields = {name: _short(value) for name, value in error.details().items()}
    return fields | {
        "type": problem_type(type(error)),
        "title": title_of(type(error)),
        "status": error.status,
        "detail": _short(str(error)),
        "code": error.code,
        "remedy": error.remedy,
        "request_id": request_id,
    }


def answer(error: BitingLipError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """Return the response to a request that met this error."""
    body = orjson.dumps(problem(error, request_id), default=str)
    return Response(body, error.status, _headers(error) | (headers or {}), MEDIA_TYPE)


def _headers(error: BitingLipError) -> dict[str, str]:
    if isinstance(error, Unavailable | QueueFull | KeyFull):
        return {"Retry-After": str(error.retry_after_s)}
    return {"WWW-Authenticate": "Bearer"} if isinstance(error, KeyMissing) else {}


def _short(value: Any) -> Any:
    return value[:DETAIL_MOST] + "…" if isinstance(value, str) and len(value) > DETAIL_MOST else value
