"""A whole cluster of real processes, each of which a test can kill and start again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULES = {"gateway": "bitinglip.gateway.main", "worker": "bitinglip.workers.main", "node": "bitinglip.workers.node"}
START_S = 60.0
STOP_S = 30.0


class Process:
    """One gateway or worker process."""

    def __init__(self, kind: str, env: dict[str, str], log_file: Path, python: str = sys.executable) -> None:
        self._kind = kind
        self._python = python
        self._env = {**os.environ, **env}
        self._log_file = log_file
        self._process: asyncio.subprocess.Process | None = None
        self.ready: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log_file.read_text(errors="replace") if self._log_file.exists() else ""

    async def start(self, *, wait: bool = True) -> None:
        """Start it and (if told to) wait until it is ready."""
        with self._log_file.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(self._python, "-m", MODULES[self._kind]),
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
            )
        if wait:
            assert self._process.stdout is not None
            line = await asyncio.wait_for(self._process.stdout.readline(), START_S)
            assert line, f"{self._kind} did not start:\n{self.log}"
            self.ready = json.loads(line)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        if self.running:
            with suppress(ProcessLookupError):  # it has ended, and nobody has waited for it yet
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def stop(self) -> int:
        """Ask it to stop; returns its exit status."""
        self.signal(signal.SIGTERM)
        return await self.wait()

    async def wait(self) -> int:
        """Wait for its end."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), STOP_S)


class Cluster:
    """The processes of one test."""

    def __init__(self, nats_url: str, folder: Path, python: str = sys.executable) -> None:
        """`python`: what they are run by."""
        self.nats_url = nats_url
        self._python = python
        self._folder = folder
        self._processes: list[Process] = []

    async def gateway(self, **settings: Any) -> Process:
        """Start a gateway on a free port, with a data directory of its own."""
        number = len(self._processes)
        env = {"BITINGLIP_GATEWAY_PORT": "0", "BITINGLIP_DATA_DIR": str(self._folder / f"gateway-{number}")}
        return await self.start("gateway", env | settings)

    async def worker(self, *models: str, **settings: Any) -> Process:
        """Start a worker for these models (`echo` if none is named)."""
        env = {
            "BITINGLIP_WORKER_MODELS": ",".join(models or ("echo",)),
            "BITINGLIP_WORKER_ID": f"w{len(self._processes)}",
            "BITINGLIP_WORKER_NODE": "test",
        }
        return await self.start("worker", env | settings)

    async def node(self, workers: int = 1, **settings: Any) -> Process:
        """Start a node agent with workers that serve `echo`, in a data directory of its own."""
        number = len(self._processes)
        env = {
            "BITINGLIP_WORKER_MODELS": "echo",
            "BITINGLIP_WORKER_NODE": f"n{number}",
            "BITINGLIP_NODE_WORKERS": workers,
            "BITINGLIP_DATA_DIR": str(self._folder / f"node-{number}"),
        }
        return await self.start("node", env | settings)

    async def start(self, kind: str, env: dict[str, Any]) -> Process:
        """Start a process with this environment."""
        number = len(self._processes)
        (self._folder / f"gateway-{number}").mkdir(parents=True, exist_ok=True)
        settings = {"BITINGLIP_NATS_URL": self.nats_url} | {name: str(value) for name, value in env.items()}
        process = Process(kind, settings, self._folder / f"{kind}-{number}.log", self._python)
        self._processes.append(process)
        await process.start()
        return process

    async def close(self) -> None:
        """End what still runs."""
        for process in self._processes:
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGKILL)
        for process in self._processes:
            if process.running:
                await process.wait()


def children_of(pid: int) -> list[int]:
    """Return the ids of a process's children: a worker's engine process among them."""
    import psutil

    return [child.pid for child in psutil.Process(pid).children()]
