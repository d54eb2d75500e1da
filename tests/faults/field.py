"""A whole cluster under attack: what there is to strike, and how each thing is struck and healed."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psutil

from tests.faults.audit import Blow
from tests.faults.servers import Servers
from tests.support.cluster import Cluster, Process, children_of
from tests.support.natscluster import NatsNode, free_ports
from tests.support.proxy import Proxy
from tests.support.server import RestartableServer, eventually
from tests.support.slowdisk import SlowDisk

BACK_S = 120.0
"""Longest time for a process to be back: it may need several starts while its server or its line is away."""
LINES = {"gateway": "gateway", "node": "worker", "worker": "worker"}
"""Whose line it is, and as which user of the server it comes."""
ELECTION_S = 10.0
"""How long one of three servers may be away: others lead meanwhile what it has led."""

DISKS = {"disk slow": (0.005, 0.1), "disk very slow": (0.5, 2.0), "disk stuck": (math.inf, math.inf)}
"""How many seconds a write then takes, from and to."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to strike; a target gets one at a time."""

    kind: str
    target: str
    deal: Callable[[str], Awaitable[None]]


class Field:
    """One nats-server or three, two gateways, a node agent with two workers, and a worker without an agent."""

    def __init__(self, folder: Path, chance: random.Random, lease_s: float, servers: int = 1) -> None:
        self.servers = Servers(folder, servers)
        self._away_s = lease_s if servers == 1 else ELECTION_S
        self.blows: list[Blow] = []
        self._folder = folder
        self._chance = chance
        self._lease_s = lease_s
        self._stack = AsyncExitStack()
        self._lines: dict[str, Proxy] = {}
        self._gateways: list[Process] = []
        self._busy: set[str] = set()
        self._dealing: list[asyncio.Task[None]] = []
        self._faults: list[Fault] = []

    @property
    def urls(self) -> list[str]:
        """Where the gateways are."""
        return [gateway.ready["url"] for gateway in self._gateways]

    async def __aenter__(self) -> Self:
        """Start everything."""
        await self._stack.enter_async_context(self.servers)
        cluster = Cluster("", self._folder)
        self._stack.push_async_callback(cluster.close)
        for number, name in enumerate(LINES):
            server = self.servers.all[number % len(self.servers.all)]
            self._lines[name] = await self._stack.enter_async_context(Proxy(server.port))
        # A cluster that is often without a leader has a backlog: in each full batch of 256 there would be a task
        # that crashes its engine, and all of them had to run again, many of them alone.
        worker = {
            "BITINGLIP_WORKER_LEASE_S": self._lease_s,
            "BITINGLIP_WORKER_MAX_BATCH": 256 if len(self.servers.all) == 1 else 64,
            "BITINGLIP_WORKER_HEARTBEAT_S": 1,
        }
        ports = free_ports(2)
        self._gateways = [
            await cluster.gateway(BITINGLIP_GATEWAY_PORT=port, **line)
            for port, line in zip(ports, (self.servers.env("gateway"), self._through("gateway")), strict=True)
        ]
        self._bare = await cluster.worker(**worker, **self._through("worker"))
        self._node = await cluster.node(workers=2, **worker, **self._through("node"))
        self._faults = self._all_faults()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End everything."""
        for task in self._dealing:
            task.cancel()
        await self._stack.aclose()

    def strike(self) -> None:
        """Deal out one fault, to something that is whole; it heals in its own time."""
        free = [fault for fault in self._faults if fault.target not in self._busy]
        if free:
            fault = self._chance.choice(free)
            self._busy.add(fault.target)
            self._dealing.append(asyncio.create_task(self._deal(fault), name=fault.kind))

    async def heal(self) -> None:
        """Wait until everything is whole again.

        Raises:
            AssertionError: something did not come back.
        """
        await asyncio.gather(*self._dealing)

    def _through(self, name: str) -> dict[str, Any]:
        return self.servers.env(LINES[name], self._lines[name].port)

    def _all_faults(self) -> list[Fault]:
        bare, node = (lambda: [self._bare.pid]), (lambda: _children(self._node.pid))
        gateways = [
            fault
            for number, gateway in enumerate(self._gateways)
            for fault in (
                Fault("gateway killed", f"gateway {number}", lambda kind, it=gateway: self._kill(kind, it)),
                Fault("gateway frozen", f"gateway {number}", lambda kind, it=gateway: self._freeze(kind, [it.pid])),
            )
        ]
        lines = [
            fault
            for name, line in self._lines.items()
            for fault in (
                Fault("line cut", f"line {name}", lambda kind, it=line: self._cut(kind, it)),
                Fault("line held up", f"line {name}", lambda kind, it=line: self._hold(kind, it)),
            )
        ]
        return [
            *gateways,
            *lines,
            *self._server_faults(),
            Fault("worker killed", "bare", lambda kind: self._kill(kind, self._bare, [self._bare.pid])),
            Fault("worker frozen", "bare", lambda kind: self._freeze(kind, bare(), bare())),
            Fault("engine killed", "bare", lambda kind: self._engine(kind, bare())),
            Fault("engine frozen", "bare", lambda kind: self._engine(kind, bare(), freeze=True)),
            Fault("agent's worker killed", "node", lambda kind: self._kill_kept(kind, self._one_of(node()))),
            Fault("agent's worker killed", "node", lambda kind: self._kill_kept(kind, self._one_of(node()))),
            Fault("agent's worker frozen", "node", lambda kind: self._freeze(kind, *[self._one_of(node())] * 2)),
            Fault("engine killed", "node", lambda kind: self._engine(kind, self._one_of(node()))),
            Fault("agent killed", "node", lambda kind: self._kill(kind, self._node, node())),
            Fault("agent frozen", "node", lambda kind: self._freeze(kind, [self._node.pid])),
            Fault("whole node killed", "node", self._kill_node),
        ]

    def _server_faults(self) -> list[Fault]:
        """Strike one of the servers at a time: three work as long as two of them do."""
        servers = [
            fault
            for server in self.servers.all
            for fault in (
                Fault("server killed", "server", lambda kind, it=server: self._kill_server(kind, it)),
                Fault("server frozen", "server", lambda kind, it=server: self._freeze_server(kind, it)),
            )
        ]
        disks = [
            Fault(kind, "server", lambda kind, it=disk, range_s=range_s: self._slow(kind, it, *range_s))
            for disk in self.servers.disks
            for kind, range_s in DISKS.items()
        ]
        return [*servers, *disks]

    async def _deal(self, fault: Fault) -> None:
        try:
            await fault.deal(fault.kind)
        finally:
            self._busy.discard(fault.target)

    def _note(self, kind: str, workers: Iterable[int] = ()) -> None:
        blow = Blow(kind, datetime.now(UTC), tuple(workers))
        self.blows.append(blow)
        with (self._folder / "faults.txt").open("a") as told:
            told.write(f"{blow.at:%H:%M:%S.%f} {kind} {' '.join(map(str, blow.pids))}\n")

    async def _moment(self, most_s: float) -> None:
        await asyncio.sleep(self._chance.uniform(0, most_s))  # sleep-ok: faults last for random times

    def _one_of(self, pids: list[int]) -> list[int]:
        return [self._chance.choice(pids)] if pids else []

    async def _kill(self, kind: str, process: Process, workers: Iterable[int] = ()) -> None:
        self._note(kind, workers)
        await process.kill()
        await self._back(process)

    async def _back(self, process: Process) -> None:
        async def started() -> bool:
            await process.kill()
            await process.start()
            return True

        await eventually(started, within_s=BACK_S)

    async def _freeze(self, kind: str, pids: Iterable[int], workers: Iterable[int] = ()) -> None:
        """Stop for up to twice the lease."""
        pids = list(pids)
        self._note(kind, workers)
        _send(pids, signal.SIGSTOP)
        await self._moment(2 * self._lease_s)
        _send(pids, signal.SIGCONT)

    async def _kill_kept(self, kind: str, pids: list[int]) -> None:
        self._note(kind, pids)
        _send(pids, signal.SIGKILL)

    async def _engine(self, kind: str, workers: list[int], *, freeze: bool = False) -> None:
        engines = [pid for worker in workers for pid in _children(worker)]
        if freeze:
            await self._freeze(kind, engines)
        else:
            self._note(kind, workers)
            _send(engines, signal.SIGKILL)

    async def _kill_node(self, kind: str) -> None:
        """The machine is gone: nobody hands anything back. It is up again after a while."""
        workers = _children(self._node.pid)
        self._note(kind, workers)
        _send([self._node.pid, *workers], signal.SIGSTOP)
        _send([self._node.pid, *workers], signal.SIGKILL)
        await self._node.wait()
        await self._moment(2 * self._lease_s)
        await self._back(self._node)

    async def _kill_server(self, kind: str, server: RestartableServer | NatsNode) -> None:
        self._note(kind)
        await server.kill()
        await self._moment(self._away_s / 2)
        await server.start()
        await eventually(server.healthy, within_s=BACK_S)

    async def _freeze_server(self, kind: str, server: RestartableServer | NatsNode) -> None:
        self._note(kind)
        server.signal(signal.SIGSTOP)
        await self._moment(self._away_s)
        server.signal(signal.SIGCONT)
        await eventually(server.healthy, within_s=BACK_S)

    async def _slow(self, kind: str, disk: SlowDisk, least_s: float, most_s: float) -> None:
        self._note(kind)
        disk.takes(self._chance.uniform(least_s, most_s) if math.isfinite(most_s) else most_s)
        await self._moment(2 * self._away_s)
        disk.takes(0)

    async def _cut(self, kind: str, line: Proxy) -> None:
        self._note(kind)
        await line.cut()
        await self._moment(2 * self._lease_s)
        line.heal()

    async def _hold(self, kind: str, line: Proxy) -> None:
        self._note(kind)
        line.hold()
        await self._moment(2 * self._lease_s)
        line.heal()


def _children(pid: int) -> list[int]:
    with suppress(psutil.NoSuchProcess):
        return children_of(pid)
    return []


def _send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
