"""Handing out what a store has: a process that sends files (`share`), started when first asked for, and its tokens."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from bitinglip.errors import CommandRefused
from bitinglip.models.layout import place_of
from bitinglip.models.protocol import Line, PeerSource
from bitinglip.models.sharetoken import token_for
from bitinglip.processes import before_exec

log = logging.getLogger(__name__)

MODULE = "bitinglip.models.share"
COMMAND = "share"
"""Name of the command by which it is asked for."""
GOOD_FOR_S = 24 * 3600
"""A token is good for so long: a fetch may take that."""
START_S = 30.0
LOOPBACK = "127.0.0.1"


class Sharing:
    """Hands out the files of one store."""

    def __init__(self, cache_dir: Path, host: str, port: int) -> None:
        """`host`: address at which others reach this machine; `port`: 0 for a free one."""
        self._cache_dir = cache_dir
        self._host, self._port = host, port
        self._secret = secrets.token_bytes(32)
        self._process: asyncio.subprocess.Process | None = None
        self._url = ""
        self._starting = asyncio.Lock()

    async def command(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer the command `share`: where the files of a revision are to be had, and the token for them.

        Raises:
            CommandRefused: it is not here as a whole, or nothing can be sent.
            InvalidReference: the name or the revision is none.
        """
        place = place_of(self._cache_dir, str(body["reference"]), str(body["revision"]))
        if not await asyncio.to_thread(place.mark.exists):
            raise CommandRefused(problem=f"{place.reference} at {place.revision} is not here")
        return (await self.offer(place.reference, place.revision)).model_dump()

    async def offer(self, reference: str, revision: str) -> PeerSource:
        """Return where the files of a revision are to be had, and the token for them.

        Raises:
            CommandRefused: nothing can be sent.
        """
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        token = token_for(self._secret, reference, revision, int(time.time()) + GOOD_FOR_S)
        return PeerSource(url=self._url, token=token)

    async def close(self) -> None:
        """Send nothing more."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            await self._process.wait()

    async def _start(self) -> None:
        job = {"cache_dir": str(self._cache_dir), "secret": self._secret.hex(), "port": self._port}
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", MODULE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec(),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(orjson.dumps(job | {"host": self._host}) + b"\n")
            await process.stdin.drain()
            line = await asyncio.wait_for(process.stdout.readline(), START_S)
            told = Line.model_validate_json(line).listening
        except (OSError, ValueError, TimeoutError) as error:
            log.warning("models are not handed out: the process for it does not start (%s)", error)
            told = None
        if told is None:
            if process.returncode is None:
                process.kill()
            raise CommandRefused(problem="it cannot hand out models now: its log says why")
        host = f"[{self._host}]" if ":" in self._host else self._host
        self._url = f"http://{host}:{told.port}"


def address_towards(server: str) -> str:
    """Return the address that this machine has towards another one: there others can reach it as well."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(server, 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as there:
            there.connect(address)  # nothing is sent: the system only says by which way it would be
            return str(there.getsockname()[0])
    except OSError as error:
        log.warning("no way to %s is known, so that models are handed out to this machine alone: %s", server, error)
        return LOOPBACK
