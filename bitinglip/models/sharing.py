"""Handing out what a store has: a process that sends files (`share`), started when first asked for, and its tokens."""

from __future__ import annotations

import asyncio
import logging
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr, ValidationError

from bitinglip.errors import CommandRefused
from bitinglip.models.importnotes import holding_of
from bitinglip.models.layout import place_of
from bitinglip.models.protocol import Line, Listening, ShareJob
from bitinglip.models.sharetoken import token_for
from bitinglip.processes import before_exec

log = logging.getLogger(__name__)

MODULE = "bitinglip.models.share"
COMMAND = "share"
"""Name of the command that asks for it."""
TOKEN_S = 6 * 3600
"""For how long one may have the files of a revision."""


class Sharing:
    """Hands out the revisions of one store."""

    def __init__(self, cache_dir: Path, host: Callable[[], str], port: int, models_dir: Path | None = None) -> None:
        """`host`: returns the address at which others reach this machine; `port`: 0 for a free one.

        `models_dir`: where folders were taken in, which are handed out as well.
        """
        self._cache_dir, self._models_dir = cache_dir, models_dir
        self._host, self._port = host, port
        self._secret = secrets.token_bytes(32)
        self._process: asyncio.subprocess.Process | None = None
        self._listening = 0
        self._starting = asyncio.Lock()

    async def offer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return where a revision's files are, and what one must show there.

        Raises:
            CommandRefused: there is no such revision, or nothing can be sent.
            InvalidReference: the name or the revision is none.
        """
        reference, revision = body.get("reference"), body.get("revision")
        if not isinstance(reference, str) or not isinstance(revision, str):
            raise CommandRefused(problem="`reference` and `revision` name what is wanted")
        place = place_of(self._cache_dir, reference, revision)
        if await asyncio.to_thread(holding_of, place, self._models_dir) is None:
            raise CommandRefused(problem=f"it has no {reference} at {revision} to hand out")
        try:
            host = await asyncio.to_thread(self._host)
        except OSError as error:
            raise CommandRefused(problem=f"its address is not known: {error}") from error
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start(host)
        token = token_for(self._secret, reference, revision, int(time.time()) + TOKEN_S)
        return {"url": f"http://{f'[{host}]' if ':' in host else host}:{self._listening}", "token": token}

    async def close(self) -> None:
        """Hand out nothing more."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def _start(self, host: str) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec(),
        )
        job = ShareJob(
            cache_dir=self._cache_dir,
            models_dir=self._models_dir,
            secret=SecretStr(""),
            host=host,
            port=self._port,
        )
        told = await _told(process, orjson.dumps(job.model_dump(mode="json") | {"secret": self._secret.hex()}))
        if told is None:
            await process.wait()
            raise CommandRefused(problem=f"it cannot hand out models at {host}: see its log (`models.share_host`)")
        self._listening = told.port
        log.info("models are handed out at %s, port %d", host, told.port)


async def _told(process: asyncio.subprocess.Process, job: bytes) -> Listening | None:
    """Give a process its job; returns what it says; none if it ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(job + b"\n")
    line = await process.stdout.readline()
    try:
        return Line.model_validate_json(line).listening
    except ValidationError:
        return None
