"""Nodes give each other the models that they have: others are asked before the hub is, and ask this one."""

from __future__ import annotations

import asyncio
import logging
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr

from bitinglip.errors import CommandRefused, NodeSilent, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.service import command
from bitinglip.models.layout import place_of
from bitinglip.models.marks import mark_of
from bitinglip.models.protocol import Line, PeerSource, ShareJob
from bitinglip.models.sharetoken import token_for
from bitinglip.models.state import Revision
from bitinglip.processes import before_exec
from bitinglip.settings import Models as Settings

SHARE = "bitinglip.models.share"
TOKEN_S = 6 * 3600
"""For how long one may have the files of a revision."""
log = logging.getLogger("bitinglip.node")

ASKED_MOST = 4
"""Nodes that are asked for a revision."""
ANSWER_S = 5.0


class ModelPeers:
    """Asks them."""

    def __init__(self, connection: Connection, settings: Settings, node_id: str) -> None:
        self._connection = connection
        self._settings = settings
        self._node_id = node_id

    async def ask(self, revision: Revision) -> tuple[PeerSource, ...]:
        """Return where other nodes hand a revision out, of those that have it and answer."""
        if not self._settings.share:
            return ()
        holders = [
            node_id
            for node_id, holding in revision.holdings.items()
            if holding.status == "stored" and node_id != self._node_id
        ]
        found = await asyncio.gather(*[self._one(node_id, revision) for node_id in holders[:ASKED_MOST]])
        return tuple(each for each in found if each is not None)

    async def _one(self, node_id: str, revision: Revision) -> PeerSource | None:
        body = {"reference": revision.reference, "revision": revision.revision}
        try:
            answer = await command(self._connection, node_id, subjects.node_command(node_id, "share"), body, ANSWER_S)
            return PeerSource(url=answer["url"], token=answer["token"])
        except (NodeSilent, CommandRefused, NoServer, KeyError) as error:
            log.info("%s does not hand out %s: %s", node_id, revision.reference, error)
            return None


class ModelShare:
    """Hands out the revisions of this node by a process of its own, which is started when the first one asks."""

    def __init__(self, connection: Connection, settings: Settings, cache_dir: Path) -> None:
        self._connection = connection
        self._settings = settings
        self._cache_dir = cache_dir
        self._secret = secrets.token_bytes(32)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._starting = asyncio.Lock()

    async def offer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return where a revision's files are, and what one must show there.

        Raises:
            CommandRefused: this node hands nothing out, or has no such revision.
        """
        reference, revision = body.get("reference"), body.get("revision")
        if not self._settings.share:
            raise CommandRefused(problem="it hands out no models (`models.share`)")
        if not isinstance(reference, str) or not isinstance(revision, str):
            raise CommandRefused(problem="`reference` and `revision` name what is wanted")
        if await asyncio.to_thread(mark_of, place_of(self._cache_dir, reference, revision)) is None:
            raise CommandRefused(problem=f"it has no {reference} at {revision} to hand out")
        host = await asyncio.to_thread(self._host)
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start(host)
        token = token_for(self._secret, reference, revision, int(time.time()) + TOKEN_S)
        return {"url": f"http://{f'[{host}]' if ':' in host else host}:{self._port}", "token": token}

    async def close(self) -> None:
        """Hand out nothing more."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    def _host(self) -> str:
        return self._settings.share_host or self._connection.local_host

    async def _start(self, host: str) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", SHARE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=before_exec(),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        job = ShareJob(
            cache_dir=self._cache_dir, secret=SecretStr(""), host=host, port=self._settings.share_port
        ).model_dump(mode="json")
        process.stdin.write(orjson.dumps(job | {"secret": self._secret.hex()}) + b"\n")
        line = await process.stdout.readline()
        listening = Line.model_validate_json(line).listening if line else None
        if listening is None:
            await process.wait()
            raise CommandRefused(problem=f"it cannot hand out models at {host}: see its log (`models.share_host`)")
        self._port = listening.port
        log.info("models are handed out at %s, port %d", host, self._port)
