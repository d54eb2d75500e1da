"""One run of a worker process, seen from its node agent: started, told, heard, ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import orjson

from bitinglip.errors import ChildFailed
from bitinglip.processes import before_exec
from bitinglip.workers.logfile import LogFile
from bitinglip.workers.tether import LINE_BYTES

MODULE = "bitinglip.workers.main"
READY_S = 120.0
LAST_LINES = 12


class WorkerChild:
    """A worker process, at the other end of its tether. It is of no more use once it has ended."""

    def __init__(
        self, name: str, env: Mapping[str, str], log: LogFile, heard: Callable[[dict[str, Any]], None]
    ) -> None:
        """`heard` gets what the worker says, but for what it holds."""
        self._name = name
        self._env = env
        self._log = log
        self._heard = heard
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._listener: asyncio.Task[None] | None = None
        self.held: set[str] = set()
        """Where the work messages that it holds are acked."""

    @property
    def pid(self) -> int | None:
        """Process id; none before the start."""
        return self._process.pid if self._process else None

    async def start(self, *first: str) -> dict[str, Any]:
        """Start it with these commands waiting for it; returns what it says when it is ready.

        Raises:
            ChildFailed: it ended before that.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = await self._spawn(theirs.fileno())
        except OSError as error:
            ours.close()
            raise ChildFailed(name=self._name, exit_status=os.EX_OSERR, told=str(error)) from error
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=LINE_BYTES)
        self._listener = asyncio.create_task(self._listen(reader), name=f"{self._name}-tether")
        for command in first:
            self.tell(command)
        return await self._ready(self._process)

    async def _spawn(self, tether: int) -> asyncio.subprocess.Process:
        with self._log.open() as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", MODULE, "--tether", str(tether)),
                env=self._env,
                pass_fds=[tether],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=before_exec(),
            )

    def tell(self, command: str, **more: Any) -> None:
        """Send it a command; one that has ended hears nothing."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(orjson.dumps({"command": command} | more) + b"\n")

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end, and for the last of what it said; returns its exit status."""
        assert self._process is not None
        status = await self._process.wait()
        if self._listener is not None:
            await self._listener
        return status

    def last_lines(self) -> list[str]:
        """Return the end of its log."""
        return self._log.last_lines(LAST_LINES)

    async def _ready(self, process: asyncio.subprocess.Process) -> dict[str, Any]:
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), READY_S)
        except TimeoutError:
            self.kill()
            line = b""
        if not line:
            status = await self.wait()
            raise ChildFailed(name=self._name, exit_status=status, told="\n  ".join(self.last_lines()))
        return orjson.loads(line)

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):  # it was killed, and the socket with it
            while line := await reader.readline():
                if line.endswith(b"\n"):
                    self._take(orjson.loads(line))
        if self._writer is not None:
            self._writer.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "all" in message:
            self.held = set(message["all"])
        elif "held" in message:
            self.held.update(message["held"])
            self.held.difference_update(message["released"])
        else:
            self._heard(message)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and we have not heard of it yet
                os.kill(self._process.pid, number)
