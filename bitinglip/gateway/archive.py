"""The archive: its index, its files, and archiving on demand."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from bitinglip.errors import ArchiveFileNotFound
from bitinglip.events import archive
from bitinglip.events.archive import ARCHIVED
from bitinglip.gateway import requests
from bitinglip.gateway.archiver import Behind
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json

STREAMS = {stream.lower(): stream for stream in ARCHIVED}
MEDIA_TYPE = "application/vnd.apache.parquet"


async def get_archive(request: Request) -> Response:
    """Answer `GET /v1/log/archive`: what is archived, what is on the server, and how far the archive is behind."""
    gateway = gateway_of(request)
    requests.only(request, ("stream",))
    chosen = _streams(request)
    streams = [await _shown(gateway, each) for each in await gateway.archiver.behind() if each.stream in chosen]
    return json({"streams": streams, "problem": gateway.archiver.problem})


async def post_archive(request: Request) -> Response:
    """Answer `POST /v1/log/archive`: archive what is due (with `now`, all that there is), and let leave what can."""
    gateway = gateway_of(request)
    requests.only(request, ("stream", "now"))
    now = requests.choice("now", requests.one(request, "now"), "false", ("true", "false")) == "true"
    done = await gateway.archiver.look(_streams(request), now=now)
    archived = [file.model_dump() for file in done.archived]
    return json({"archived": archived, "trimmed": done.trimmed and done.trimmed.model_dump()})


async def get_file(request: Request) -> Response:
    """Answer `GET /v1/log/archive/{file}`: a file of the archive, checked against the index."""
    gateway = gateway_of(request)
    requests.only(request)
    name: str = request.path_params["file"]
    stream = name.partition("/")[0]
    files = await gateway.archiver.files.index(stream) if stream in ARCHIVED else []
    for file in files:
        if file.file == name:
            path = await gateway.archiver.files.path_of(file)
            return FileResponse(path, headers={"ETag": f'"{file.sha256}"'}, media_type=MEDIA_TYPE)
    raise ArchiveFileNotFound(file=name[:200])


def _streams(request: Request) -> tuple[str, ...]:
    name = requests.one(request, "stream")
    return ARCHIVED if name is None else (STREAMS[requests.choice("stream", name, name, STREAMS)],)


async def _shown(gateway: Gateway, behind: Behind) -> dict[str, Any]:
    files = await gateway.archiver.files.index(behind.stream)
    return {
        "stream": behind.stream,
        "archived_to": behind.archived_to,
        "trimmed_to": await archive.trimmed_to(gateway.log.connection, behind.stream),
        "last_sequence": behind.last,
        "messages": await gateway.log.messages(behind.stream),
        "behind_events": behind.last - behind.archived_to,
        "behind_s": round(behind.waits_s, 3),
        "events": sum(file.events for file in files),
        "size_bytes": sum(file.size_bytes for file in files),
        "files": [file.model_dump() for file in files],
    }
