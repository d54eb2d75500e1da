"""Artifacts: big inputs and results, by their digest."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import ArtifactNotFound, NoServer
from bitinglip.events import artifacts
from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
IMMUTABLE = "private, max-age=31536000, immutable"


async def get_artifact(request: Request) -> Response:
    """Answer `GET /v1/artifacts/{digest}`. The bytes of a digest never change, so a cached copy is always good.

    A browser neither guesses their type nor runs them: some were made by strangers' prompts.
    """
    requests.only(request)
    digest: str = request.path_params["digest"]
    if _DIGEST.fullmatch(digest) is None:
        raise ArtifactNotFound(digest=digest)
    headers = {
        "ETag": f'"{digest}"',
        "Cache-Control": IMMUTABLE,
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    if headers["ETag"] in requests.header(request, b"if-none-match"):
        return Response(status_code=304, headers=headers)
    log = gateway_of(request).log
    if not log.connected:
        raise NoServer(problem="the connection is away")
    body, media_type = await artifacts.get(log.connection, digest)
    return Response(body, headers=headers, media_type=media_type)
