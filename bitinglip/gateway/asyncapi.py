"""The AsyncAPI 3.0 document of the event log, as it is answered."""

from __future__ import annotations

from functools import cache

import orjson
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.events.asyncapi import document


async def asyncapi(_: Request) -> Response:
    """Answer `GET /asyncapi.json`."""
    return Response(encoded(), media_type="application/json")


@cache
def encoded() -> bytes:
    """Return the document as bytes; made once."""
    return orjson.dumps(document())
