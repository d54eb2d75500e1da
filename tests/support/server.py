"""Real nats-servers for tests, and waiting."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bitinglip.cli.natsserver import PrivateServer, find_or_fetch

ACCOUNTS = 1_000


class Server:
    """A nats-server with many accounts, run synchronously for the whole session."""

    def __init__(self, folder: Path, accounts: int) -> None:
        self._folder = folder
        self._accounts = accounts
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start(self) -> None:
        """Start it and wait until it takes clients."""
        binary = find_or_fetch()
        config = self._folder / "nats.conf"
        config.write_text(self._config(), "utf-8")
        with (self._folder / "nats.log").open("wb") as log:
            self._process = subprocess.Popen([binary, "-c", config], stdout=log, stderr=log)
        self.port = port_of(binary, self._process, self._folder)

    def stop(self) -> None:
        """Stop it."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(10)

    def _config(self) -> str:
        accounts = "\n".join(
            f"  A{n}: {{ jetstream: enabled, users: [{{user: t{n}, password: t{n}}}] }}" for n in range(self._accounts)
        )
        return f"""
host: 127.0.0.1
port: -1
ports_file_dir: {json.dumps(str(self._folder))}
max_payload: 1MB
jetstream {{ store_dir: {json.dumps(str(self._folder / "store"))}, max_file_store: 8GB }}
accounts {{
{accounts}
}}
"""


def port_of(binary: Path, process: subprocess.Popen[bytes], folder: Path) -> int:
    """Return the port of a server that writes its ports and its log into this folder, once it takes clients."""
    ports = folder / f"{binary.name}_{process.pid}.ports"
    deadline = time.monotonic() + 20
    while not (ports.exists() and ports.read_text().rstrip().endswith("}")):
        assert process.poll() is None, (folder / "nats.log").read_text()
        assert time.monotonic() < deadline, "the nats-server did not come up"
        os.sched_yield()
    return int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])


async def publish_raw(url: str, subject: bytes, payload: bytes) -> None:
    """Publish on a subject that a client's library would not let through; returns once the server has it."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname or "127.0.0.1", address.port)
    who = {"user": address.username, "pass": address.password} if address.username else {}
    writer.write(b"CONNECT %s\r\n" % json.dumps(who | {"verbose": False}).encode())
    writer.write(b"PUB %s %d\r\n%s\r\nPING\r\n" % (subject, len(payload), payload))
    while await reader.readline() != b"PONG\r\n":
        pass
    writer.close()
    await writer.wait_closed()


class RestartableServer:
    """A private server on a fixed port that a test kills and starts again."""

    def __init__(self, store: Path, program: Path | None = None) -> None:
        """`program`: what is run in the place of nats-server."""
        self._store = store
        self._program = program
        self._server: PrivateServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Address for clients, the same after each start."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Its port, the same after each start."""
        return self._port

    async def start(self) -> None:
        """Start it, on the same port and store as before."""
        self._server = PrivateServer(self._program or find_or_fetch(), self._store, port=self._port)
        await self._server.start()
        self._port = self._server.port

    async def healthy(self) -> bool:
        """Whether it is up to date: alone it is, once it has started."""
        return True

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        assert self._server is not None
        await self._server.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._server is not None
        os.kill(self._server.pid, number)

    async def stop(self) -> None:
        """Stop it."""
        if self._server is not None:
            await self._server.stop()


async def eventually(check: Callable[[], Any | Awaitable[Any]], within_s: float = 15.0) -> Any:
    """Wait until the check returns something true, and return that; what it raises counts as not yet.

    Raises:
        AssertionError: it did not in time; the last answer is told.
    """
    deadline = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < deadline:
        try:
            answer = check()
            last = await answer if inspect.isawaitable(answer) else answer
            if last:
                return last
        except Exception as error:  # noqa: BLE001  (told below)
            last = error
        await asyncio.sleep(0.02)  # sleep-ok: the one place where a test waits
    raise AssertionError(f"not within {within_s} s; the last answer was {last!r}")
