"""`bitinglip up`: a whole cluster on this machine. `bitinglip gateway`, `node`, `worker`: one process of one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from bitinglip.cli import render
from bitinglip.cli.children import Child
from bitinglip.cli.natsserver import PrivateServer, find_or_fetch
from bitinglip.cli.options import Json, Model, NatsUrl, models
from bitinglip.cli.options import settings as settings_of
from bitinglip.settings import Settings, environment_name

GATEWAY_MODULE = "bitinglip.gateway.main"
NODE_MODULE = "bitinglip.workers.node"
WORKER_MODULE = "bitinglip.workers.main"
PATIENCE_S = 5.0
"""Seconds beyond its own grace period that a process gets to stop."""
NODE_PATIENCE_S = 15.0
"""The same for a node agent: first its workers get theirs."""

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where data is kept.", show_default=False)]
Host = Annotated[str | None, typer.Option("--host", help="Address to bind.", show_default=False)]
Port = Annotated[int | None, typer.Option("--port", help="Port of the gateway; 0: a free one.", show_default=False)]
Workers = Annotated[int, typer.Option("--workers", min=0, help="Worker processes to start, over all devices.")]


def up(
    port: Port = None,
    host: Host = None,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
    model: Model = None,
    workers: Workers = 1,
    as_json: Json = False,
) -> None:
    """Start a nats-server (unless --nats-url names one), a gateway and workers, and keep them running until Ctrl-C."""
    flags = {"gateway.port": port, "gateway.host": host, "data_dir": data_dir, "nats.url": nats_url}
    flags |= {"worker.models": models(model)}
    settings = settings_of(**flags)
    raise typer.Exit(asyncio.run(Cluster(settings, flags, workers, as_json=as_json).run()))


def gateway(host: Host = None, port: Port = None, data_dir: DataDir = None, nats_url: NatsUrl = None) -> None:
    """Run a gateway in this process."""
    flags = {"gateway.host": host, "gateway.port": port, "data_dir": data_dir, "nats.url": nats_url}
    _become(GATEWAY_MODULE, flags)


async def outside_or_private(settings: Settings, stack: AsyncExitStack, say: Callable[[str], None]) -> str:
    """Return the address of the NATS server: of the one that is set, or of a private one that is started for it.

    Raises:
        NoServer: the private one did not come up, or another process has its store.
    """
    if settings.nats.url is not None:
        return settings.nats.url
    server = PrivateServer(
        find_or_fetch(settings.nats.server, say),
        settings.data_dir / "nats",
        port=settings.nats.port,
        max_store_bytes=settings.nats.max_store_bytes,
        sync_always=settings.nats.sync_always,
    )
    await stack.enter_async_context(server)
    return server.url


def become_worker(
    model: list[str] | None, device: str | None, worker_id: str | None, data_dir: Path | None, nats_url: str | None
) -> None:
    """Become a worker."""
    flags = {"worker.models": models(model), "worker.device": device, "worker.id": worker_id}
    _become(WORKER_MODULE, flags | {"data_dir": data_dir, "nats.url": nats_url})


def become_node(
    model: list[str] | None,
    workers: int | None,
    devices: list[str] | None,
    labels: list[str] | None,
    node_id: str | None,
    data_dir: Path | None,
    nats_url: str | None,
) -> None:
    """Become the agent of this machine."""
    flags = {"worker.models": models(model), "worker.node": node_id, "node.workers": workers}
    flags |= {"node.devices": models(devices), "node.labels": models(labels)}
    _become(NODE_MODULE, flags | {"data_dir": data_dir, "nats.url": nats_url})


class Cluster:
    """The processes of `bitinglip up`."""

    def __init__(self, settings: Settings, flags: dict[str, Any], workers: int, *, as_json: bool) -> None:
        self._settings = settings
        self._flags = flags
        self._workers = workers
        self._as_json = as_json
        self._children: list[Child] = []
        self._stop = asyncio.Event()
        self._signals = 0

    async def run(self) -> int:
        """Run the cluster until a signal comes; returns the exit code.

        Raises:
            BitingLipError: something did not start.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        async with AsyncExitStack() as stack:
            nats_url = await outside_or_private(self._settings, stack, self._say)
            env = os.environ | _environment(self._flags) | {"BITINGLIP_NATS_URL": nats_url}
            stack.push_async_callback(self._stop_children)
            gateway = await self._start("gateway", GATEWAY_MODULE, env)
            gateway.set(environment_name("gateway.port"), gateway.ready["url"].rpartition(":")[2])
            env |= {environment_name("node.workers"): str(self._workers)}
            node = await self._start("node", NODE_MODULE, env) if self._workers else None
            self._announce(gateway, node, env["BITINGLIP_NATS_URL"])
            await self._stop.wait()
            self._say("stopping …")
        return 0

    async def _start(self, name: str, module: str, env: dict[str, str]) -> Child:
        child = Child(name, module, env, self._settings.data_dir / "logs" / f"{name}.log", self._say)
        self._children.append(child)
        await child.start()
        return child

    async def _stop_children(self) -> None:
        """Workers first, so that what they finish still finds the gateway; then the rest."""
        patience = self._settings.worker.grace_s + NODE_PATIENCE_S
        nodes = [child for child in self._children if child.name != "gateway"]
        await asyncio.gather(*[child.stop(patience) for child in nodes])
        rest = [child for child in self._children if child.name == "gateway"]
        await asyncio.gather(*[child.stop(self._settings.gateway.drain_s + PATIENCE_S) for child in rest])

    def _announce(self, gateway: Child, node: Child | None, nats_url: str) -> None:
        url = gateway.ready["url"]
        served: list[str] = node.ready["models"] if node else []
        workers: list[dict[str, Any]] = node.ready["workers"] if node else []
        if self._as_json:
            render.json({"url": url, "nats_url": nats_url, "models": served, "pid": os.getpid()})
            return
        render.pairs(
            [
                ("gateway", url),
                ("nats", nats_url),
                ("workers", ", ".join(worker["worker_id"] for worker in workers) or "none"),
                ("models", ", ".join(served) or "none"),
                ("data", str(self._settings.data_dir)),
                ("logs", str(self._settings.data_dir / "logs")),
            ]
        )
        port = "" if url == self._settings.gateway.url else f" --url {url}"
        render.line(
            f"\nTry: bitinglip task submit echo --model echo --param message=hello --wait{port}\nCtrl-C stops it."
        )

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            for child in self._children:  # a node agent that hears a second time kills its workers, and ends
                child.ask_to_stop() if child.name == "node" else child.kill()

    def _say(self, text: str) -> None:
        render.note(text)


def _environment(flags: dict[str, Any]) -> dict[str, str]:
    return {environment_name(name): _text(value) for name, value in flags.items() if value is not None}


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _become(module: str, flags: dict[str, Any]) -> None:
    """Replace this process, so that signals and exit codes are those of the process that does the work."""
    settings_of(**flags)
    os.environ.update(_environment(flags))
    os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606
