"""Child processes of `bitinglip up`: started, waited for until they say that they are ready, started again, stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from bitinglip.errors import ChildFailed
from bitinglip.processes import before_exec, how_it_ended

READY_S = 120.0
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)
LAST_LINES = 12


class Child:
    """One gateway or node agent; its log goes to a file."""

    def __init__(
        self, name: str, module: str, env: Mapping[str, str], log_file: Path, say: Callable[[str], None]
    ) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self._module = module
        self._env = dict(env)
        self._log_file = log_file
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._watch: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start it and wait until it is ready; from then on it is started again whenever it ends.

        Raises:
            ChildFailed: it ended before it was ready; the last lines of its log are told.
        """
        await self._start()
        self._watch = asyncio.create_task(self._keep_alive(), name=self.name)

    def ask_to_stop(self) -> None:
        """Send SIGTERM."""
        self._stopping = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._stopping = True
        self._signal(signal.SIGKILL)

    async def stop(self, patience_s: float) -> None:
        """End it: asked first, killed after the patience is over."""
        self.ask_to_stop()
        process = self._process
        if process is not None:
            try:
                await asyncio.wait_for(process.wait(), patience_s)
            except TimeoutError:
                self._say(f"{self.name} did not stop in {patience_s:g} s; killing it")
                self.kill()
                await process.wait()
        if self._watch is not None:
            self._watch.cancel()

    def set(self, variable: str, value: str) -> None:
        """Change its environment for the next start."""
        self._env[variable] = value

    async def _start(self) -> None:
        self._log_file.parent.mkdir(parents=True, exist_ok=True)
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._module),
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=before_exec(),
            )
        assert self._process.stdout is not None
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), READY_S)
        except TimeoutError:
            self.kill()
            line = b""
        if not line:
            status = await self._process.wait()
            raise ChildFailed(name=self.name, exit_status=status, told=self._last_lines())
        self.ready = orjson.loads(line)
        self._listener = asyncio.create_task(self._listen(self._process.stdout), name=f"{self.name}-notices")

    async def _listen(self, stdout: asyncio.StreamReader) -> None:
        """Pass on what the process has to say, a JSON document a line, until it ends."""
        while line := await stdout.readline():
            self._say(orjson.loads(line)["notice"])

    async def _keep_alive(self) -> None:
        failures = 0
        while not self._stopping:
            assert self._process is not None
            status = await self._process.wait()
            if self._stopping:
                return
            pause = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
            self._say(f"{self.name} {how_it_ended(status)}; starting it again in {pause:g} s (log: {self._log_file})")
            await asyncio.sleep(pause)
            failures += 1
            started = asyncio.get_running_loop().time()
            try:
                await self._start()
                self._say(f"{self.name} is back")
            except ChildFailed as error:
                self._say(str(error))
            if asyncio.get_running_loop().time() - started > BACKOFF_S[-1]:
                failures = 0

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):  # it has ended, and we have not heard of it yet
                os.kill(self._process.pid, number)

    def _last_lines(self) -> str:
        lines = self._log_file.read_text("utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return "\n  ".join(lines)
