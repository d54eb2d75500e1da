"""The nats-servers of a cluster under attack: one, or three; each has a disk of its own that can be made slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from bitinglip.cli.natsserver import find_or_fetch
from bitinglip.settings import Nats
from tests.support.natscluster import SIZE, NatsCluster, NatsNode
from tests.support.server import RestartableServer
from tests.support.slowdisk import SlowDisk, is_supported


class Servers:
    """So many of them, and how a process of ours reaches them."""

    def __init__(self, folder: Path, count: int) -> None:
        if count not in (1, SIZE):
            raise ValueError(f"one server or {SIZE}, not {count}")
        program = find_or_fetch()
        self.disks = [SlowDisk(folder / f"disk-{number}") for number in range(count)] if is_supported() else []
        programs = [disk.holds(program) for disk in self.disks] or [program] * count
        self._cluster = None if count == 1 else NatsCluster(folder / "nats", programs)
        self.all: list[RestartableServer | NatsNode] = (
            [RestartableServer(folder / "nats", programs[0])]
            if self._cluster is None
            else list(self._cluster.nodes.values())
        )

    @property
    def settings(self) -> Nats:
        """How somebody who looks on reaches them."""
        return Nats(url=self.url("gateway"), replicas=len(self.all))

    async def __aenter__(self) -> Self:
        """Start them."""
        if self._cluster is not None:
            await self._cluster.start()
        else:
            await self.all[0].start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End them."""
        for server in self.all:
            await server.kill()

    def url(self, user: str, port: int | None = None) -> str:
        """Return the address of all of them for a user, or that of a port that leads to one of them."""
        of = f"{user}:{user}-secret@" if self._cluster is not None else ""
        ports = [server.port for server in self.all] if port is None else [port]
        return ",".join(f"nats://{of}127.0.0.1:{each}" for each in ports)

    def env(self, user: str, port: int | None = None) -> dict[str, Any]:
        """Return the settings of a process of ours."""
        return {"BITINGLIP_NATS_URL": self.url(user, port), "BITINGLIP_NATS_REPLICAS": len(self.all)}
