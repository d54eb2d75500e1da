"""Three real nats-servers as one cluster, on loopback, run from the very files that are deployed."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path

import httpx

from bitinglip.cli.natsserver import find_or_fetch
from bitinglip.processes import die_with_parent
from tests.support.server import eventually

CONFIG = Path(__file__).parents[2] / "deploy" / "nats-cluster" / "nats.conf"
PASSWORDS = ("ROUTE", "GATEWAY", "WORKER", "AUDITOR", "BACKUP", "SYSTEM")
SIZE = 3
STOP_S = 60.0


class NatsNode:
    """One server of the cluster, to be killed and started again on the same ports and store."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], port: int, monitor: int, program: Path) -> None:
        self.name = name
        self._program = program
        self.port = port
        self._folder = folder
        self._env = env
        self._monitor = monitor
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self._folder / f"{self.name}.log").read_text("utf-8", errors="replace")

    async def start(self) -> None:
        """Start it, without waiting for the others."""
        with (self._folder / f"{self.name}.log").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *(self._program, "-c", CONFIG),
                env={**os.environ, **self._env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                preexec_fn=die_with_parent,
            )

    async def healthy(self) -> bool:
        """Whether it has joined, and its streams and consumers are up to date."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.get(f"http://127.0.0.1:{self._monitor}/healthz")).status_code == 200

    async def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.running:
            self.signal(signal.SIGKILL)
            assert self._process is not None
            await self._process.wait()

    async def stop(self) -> None:
        """Have it end as an operator would."""
        if self.running:
            self.signal(signal.SIGTERM)
            assert self._process is not None
            await asyncio.wait_for(self._process.wait(), STOP_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)


class NatsCluster:
    """The three servers."""

    def __init__(self, folder: Path, programs: Sequence[Path] = ()) -> None:
        """`programs`: what is run in the place of nats-server, one a server."""
        folder.mkdir(parents=True, exist_ok=True)
        ports = free_ports(3 * SIZE)
        passwords = {f"{name}_PASSWORD": f"{name.lower()}-secret" for name in PASSWORDS}
        routes = [f"nats://route:route-secret@127.0.0.1:{port}" for port in ports[SIZE : 2 * SIZE]]
        self.nodes = {
            name: NatsNode(
                name,
                folder,
                passwords
                | {
                    "NATS_NAME": name,
                    "NATS_CLIENTS": f"127.0.0.1:{client}",
                    "NATS_ROUTE": f"127.0.0.1:{route}",
                    "NATS_ROUTES": f"[{', '.join(routes)}]",
                    "NATS_MONITOR": f"127.0.0.1:{monitor}",
                    "NATS_STORE": str(folder / name),
                },
                client,
                monitor,
                program,
            )
            for name, client, route, monitor, program in zip(
                [f"nats-{number}" for number in range(1, SIZE + 1)],
                ports[:SIZE],
                ports[SIZE : 2 * SIZE],
                ports[2 * SIZE :],
                programs or [find_or_fetch()] * SIZE,
                strict=True,
            )
        }

    def url(self, user: str, *names: str) -> str:
        """Address of the named servers (all, if none is named), as this user."""
        return ",".join(
            f"nats://{user}:{user}-secret@127.0.0.1:{self.nodes[name].port}" for name in names or self.nodes
        )

    async def start(self) -> None:
        """Start all that do not run, and wait until they are one cluster."""
        for node in self.nodes.values():
            if not node.running:
                await node.start()
        await self.settle()

    async def settle(self) -> None:
        """Wait until every running server is up to date."""
        for node in self.nodes.values():
            if node.running:
                await eventually(node.healthy, within_s=60)

    async def stop(self) -> None:
        """Stop all of them at the same time."""
        await asyncio.gather(*[node.stop() for node in self.nodes.values()])

    async def kill(self) -> None:
        """Kill all of them."""
        for node in self.nodes.values():
            await node.kill()


def free_ports(count: int) -> list[int]:
    """Return ports that are free right now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
