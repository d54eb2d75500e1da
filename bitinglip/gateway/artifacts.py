"""Artifacts: big inputs and results, by their digest."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitinglip.errors import ArtifactNotFound, InvalidInput, NoServer
from bitinglip.events import artifacts
from bitinglip.gateway import requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:\s*;\s*[\w.+-]+=[\w.+\"-]+)*")
IMMUTABLE = "private, max-age=31536000, immutable"


async def post_artifact(request: Request) -> Response:
    """Answer `POST /v1/artifacts`: store the body, which is read as it comes, under its SHA-256."""
    requests.only(request)
    gateway = _connected(request)
    media_type = requests.header(request, b"content-type").strip() or artifacts.UNKNOWN_TYPE
    if _MEDIA_TYPE.fullmatch(media_type) is None:
        raise InvalidInput(field="Content-Type", problem=f"{media_type[:100]!r} is no media type")
    with _scratch_file() as path:
        size = await requests.read_into(request, path, gateway.settings.gateway.max_upload_bytes)
        if size == 0:
            raise InvalidInput(field="body", problem="it is empty; send the bytes as they are, not as a form")
        reference = await artifacts.put_file(gateway.log.connection, path, media_type)
    location = f"/v1/artifacts/{reference.sha256}"
    told = reference.model_dump(exclude={"encrypted"})
    return json(told | {"links": {"self": location}}, 201, {"Location": location})


async def get_artifact(request: Request) -> Response:
    """Answer `GET /v1/artifacts/{digest}`, or a range of it (RFC 9110). A digest's bytes never change: copies are good.

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
    gateway = _connected(request)
    with _scratch_file(keep=True) as path:
        reference = await artifacts.get_file(gateway.log.connection, digest, path)
    if reference.encrypted is not None:
        headers["Cache-Control"] = "no-store"
    return FileResponse(path, headers=headers, media_type=reference.media_type, background=BackgroundTask(path.unlink))


def _connected(request: Request) -> Gateway:
    gateway = gateway_of(request)
    if not gateway.log.connected:
        raise NoServer(problem="the connection is away")
    return gateway


@contextmanager
def _scratch_file(*, keep: bool = False) -> Generator[Path]:
    """Make an empty file, gone after the block; with `keep`, only if the block fails."""
    with tempfile.NamedTemporaryFile(prefix="bitinglip-", delete=False) as file:
        path = Path(file.name)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    if not keep:
        path.unlink(missing_ok=True)
