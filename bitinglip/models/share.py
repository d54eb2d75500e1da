"""The process that hands files of this node's revisions to other nodes: `python -m bitinglip.models.share`.

It takes its settings as a line of standard input, says where it listens as a line of standard output, and ends with
the agent that started it. A file is sent to who shows a token for its revision, which the agent signs; ranges can be
asked for. Only files that a mark names are sent, or the note of a folder that was taken in.
"""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from bitinglip.errors import InvalidReference
from bitinglip.models.importnotes import holding_of
from bitinglip.models.jobprocess import read_job
from bitinglip.models.layout import Place, place_in
from bitinglip.models.protocol import Line, Listening, ShareJob, say
from bitinglip.models.sharetoken import is_good

PIECE_BYTES = 1 << 20
IDLE_S = 15
"""A connection that asks for nothing is closed after so long."""


class Share:
    """What is handed out."""

    def __init__(self, cache_dir: Path, secret: bytes, models_dir: Path | None = None) -> None:
        self._cache_dir, self._models_dir, self._secret = cache_dir, models_dir, secret

    def app(self) -> Starlette:
        """Return the application."""
        return Starlette(routes=[Route("/{repo}/{revision}/{path:path}", self._file, methods=["GET"])])

    async def _file(self, request: Request) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            place = place_in(self._cache_dir / request.path_params["repo"], request.path_params["revision"])
        except InvalidReference:
            return _refused(404)
        if not is_good(token, self._secret, place.reference, place.revision, time.time()):
            return _refused(403)
        file = await asyncio.to_thread(_marked_file, place, self._models_dir, request.path_params["path"])
        return _Pieces(file) if file is not None else _refused(404)


class _Pieces(FileResponse):
    chunk_size = PIECE_BYTES


def _refused(status: int) -> Response:
    """Say no more than needed: it is a node that asks, or nobody who should."""
    return PlainTextResponse("", status)


def _marked_file(place: Place, models_dir: Path | None, path: str) -> Path | None:
    """Return a file that the mark or note of a revision names, and that lies in its store."""
    holding = holding_of(place, models_dir)
    if holding is None or all(file.path != path for file in holding[0].files):
        return None
    folder = holding[1]
    within = place.cache_dir if folder == place.snapshot else folder
    there = (folder / place.file(path).relative_to(place.snapshot)).resolve()
    return there if there.is_file() and there.is_relative_to(within.resolve()) else None


def main() -> None:
    """Serve until told to end."""
    job = read_job(ShareJob)
    listening = socket.create_server((job.host, job.port))
    app = Share(job.cache_dir, bytes.fromhex(job.secret.get_secret_value()), job.models_dir).app()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=job.most_connections,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=1,
    )
    say(Line(listening=Listening(port=listening.getsockname()[1])))
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
