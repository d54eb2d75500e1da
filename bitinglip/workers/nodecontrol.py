"""What a node can be told: the commands of the NATS service `bitinglip-node`, and the rolling restart."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from bitinglip import __version__
from bitinglip.errors import BitingLipError, CommandRefused, NodeSilent, NodeTaken
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.node import (
    NodeDrained,
    NodeEvent,
    NodeLabelled,
    NodeRestartingWorkers,
    NodeUndrained,
    NodeWorkerCommanded,
    WorkerCommand,
)
from bitinglip.events.service import Command, CommandService, command
from bitinglip.workers.slot import Slot

log = logging.getLogger("bitinglip.node")

SERVICE = "bitinglip-node"
ASK_S = 2.0
LINES, LINES_MOST = 100, 2_000
LABELS_MOST = 64
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
VALUE = re.compile(r"[^=,\s]{0,63}")


class Fleet:
    """A node's workers, its labels, and whether it is drained: what commands change."""

    def __init__(
        self, node_id: str, slots: dict[str, Slot], labels: dict[str, str], worker_labels: Sequence[str] = ()
    ) -> None:
        self.node_id = node_id
        self.slots = slots
        self.labels = labels
        self._worker_labels = worker_labels
        self.draining = False
        self.restarting: list[str] = []
        """Workers that a rolling restart has yet to come to."""

    def words(self) -> list[str]:
        """Return what tasks may require of its workers: `worker.labels`, and the node's as NAME or NAME=VALUE."""
        ours = [f"{name}={value}" if value else name for name, value in self.labels.items()]
        return sorted({*self._worker_labels, *ours})


class NodeControl:
    """Takes the commands, and tells each in the log."""

    def __init__(
        self,
        fleet: Fleet,
        tell: Callable[[NodeEvent], Awaitable[None]],
        load_s: float,
        drain_s: float | None = None,
        more: Mapping[str, Command] | None = None,
    ) -> None:
        """`load_s`: how long a model may take to load; `drain_s`: how long a restart waits for what runs.

        `more`: commands that are not about workers, by their names.
        """
        self._fleet = fleet
        self._tell = tell
        self._load_s = load_s
        self._drain_s = drain_s
        self._more = more or {}
        self._rolling: asyncio.Task[None] | None = None

    async def serve(self, connection: Connection) -> CommandService:
        """Take commands from now on.

        Raises:
            NoServer: the connection is away.
        """
        node_id = self._fleet.node_id
        service = await CommandService.open(
            connection, SERVICE, __version__, "The agent of one machine of a BitingLip cluster.", {"node_id": node_id}
        )
        commands = {
            "status": self.status,
            "drain": self.drain,
            "undrain": self.undrain,
            "labels": self.label,
            "logs": self.logs,
            "restart-workers": self.restart_workers,
            **self._more,
        }
        for name, handle in commands.items():
            await service.take(name, subjects.node_command(node_id, name), handle)
        for name in ("start", "stop", "restart", "drain", "undrain", "load", "unload"):
            await service.take(f"worker-{name}", subjects.node_command(node_id, f"worker-{name}"), self._worker(name))
        return service

    async def close(self) -> None:
        """Go no further with a rolling restart."""
        if self._rolling is not None:
            self._rolling.cancel()

    # --- the node -----------------------------------------------------------------------------------------------------

    async def status(self, _: dict[str, Any]) -> dict[str, Any]:
        """Return the node as it is now."""
        fleet = self._fleet
        return {
            "node_id": fleet.node_id,
            "draining": fleet.draining,
            "labels": fleet.labels,
            "restarting": fleet.restarting,
            "workers": [slot.fact().model_dump() for slot in fleet.slots.values()],
        }

    async def drain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Have all workers take nothing new, also those that start later."""
        await self._tell(NodeDrained(node_id=self._fleet.node_id, by=body.get("by")))
        self._fleet.draining = True
        for slot in self._fleet.slots.values():
            slot.drain()
        return await self.status(body)

    async def undrain(self, body: dict[str, Any]) -> dict[str, Any]:
        """Have all workers take work again."""
        await self._tell(NodeUndrained(node_id=self._fleet.node_id, by=body.get("by")))
        self._fleet.draining = False
        for slot in self._fleet.slots.values():
            slot.undrain()
        return await self.status(body)

    async def label(self, body: dict[str, Any]) -> dict[str, Any]:
        """Set labels; those whose value is null are taken away."""
        labels = changed(self._fleet.labels, body.get("labels", {}))
        await self._tell(NodeLabelled(node_id=self._fleet.node_id, by=body.get("by"), labels=labels))
        self._fleet.labels = labels
        for slot in self._fleet.slots.values():
            slot.label(self._fleet.words())
        return await self.status(body)

    async def logs(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the last lines of a worker's log."""
        slot = self._slot(body)
        most = int(body.get("lines", LINES))
        if not 1 <= most <= LINES_MOST:
            raise CommandRefused(problem=f"lines must be from 1 to {LINES_MOST}")
        return {"worker_id": slot.worker_id, "lines": await asyncio.to_thread(slot.log.last_lines, most)}

    async def restart_workers(self, body: dict[str, Any]) -> dict[str, Any]:
        """Begin to restart all workers, one after the other, each drained before; goes on after the answer."""
        if self._rolling is not None and not self._rolling.done():
            raise CommandRefused(problem="its workers are already being restarted")
        workers = [slot.worker_id for slot in self._fleet.slots.values() if slot.state != "stopped"]
        await self._tell(NodeRestartingWorkers(node_id=self._fleet.node_id, by=body.get("by"), workers=workers))
        self._fleet.restarting = workers
        self._rolling = asyncio.create_task(self._roll(), name="rolling-restart")
        return await self.status(body)

    async def _roll(self) -> None:
        while self._fleet.restarting:
            slot = self._fleet.slots[self._fleet.restarting[0]]
            await self._renew(slot)
            self._fleet.restarting = self._fleet.restarting[1:]

    async def _renew(self, slot: Slot) -> None:
        """Drain a worker, start it anew, and wait until it works as before."""
        was_draining = slot.draining
        slot.drain()
        try:
            async with asyncio.timeout(self._drain_s):
                await slot.until("drained", "waiting", "stopped")
        except TimeoutError:
            log.warning("%s is restarted with work in its hands", slot.worker_id)
        slot.draining = was_draining
        slot.restart()
        await slot.until("starting", "stopped")
        await slot.until("ready", "draining", "drained", "stopped")

    # --- a worker -----------------------------------------------------------------------------------------------------

    def _worker(self, name: WorkerCommand) -> Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]:
        async def handle(body: dict[str, Any]) -> dict[str, Any]:
            slot, model = self._slot(body), body.get("model")
            fact = NodeWorkerCommanded(
                node_id=self._fleet.node_id, by=body.get("by"), worker_id=slot.worker_id, command=name, model=model
            )
            if name in {"load", "unload"}:
                await self._ask(slot, name, model)
                await self._tell(fact)
            else:
                await self._tell(fact)
                self._command(slot, name)
            return slot.fact().model_dump()

        return handle

    def _command(self, slot: Slot, name: WorkerCommand) -> None:
        match name:
            case "start":
                slot.start()
            case "stop":
                slot.stop()
            case "restart":
                slot.draining = self._fleet.draining
                slot.restart()
            case "drain":
                slot.drain()
            case _:
                slot.undrain()

    async def _ask(self, slot: Slot, name: str, model: Any) -> None:
        if not isinstance(model, str):
            raise CommandRefused(problem="`model` names what is to be loaded or unloaded")
        try:
            problem = await slot.ask(name, model, self._load_s)
        except TimeoutError:
            problem = f"{slot.worker_id} did not answer within {self._load_s:g} s"
        if problem is not None:
            raise CommandRefused(problem=problem)

    def _slot(self, body: dict[str, Any]) -> Slot:
        slot = self._fleet.slots.get(body.get("worker_id", ""))
        if slot is None:
            known = ", ".join(self._fleet.slots) or "none"
            raise CommandRefused(problem=f"it runs no worker {body.get('worker_id')!r} (its workers: {known})")
        return slot


def changed(labels: dict[str, str], changes: dict[str, Any]) -> dict[str, str]:
    """Return the labels after a change, in which null takes a label away.

    Raises:
        CommandRefused: a name or a value is refused, or they are too many.
    """
    after = labels | changes
    for name, value in after.items():
        if LABEL.fullmatch(name) is None or not (value is None or VALUE.fullmatch(str(value))):
            raise CommandRefused(problem=f"{name}={value} is no label")
    kept = {name: str(value) for name, value in after.items() if value is not None}
    if len(kept) > LABELS_MOST:
        raise CommandRefused(problem=f"a node has at most {LABELS_MOST} labels")
    return kept


async def refuse_a_second(connection: Connection, node_id: str) -> None:
    """Refuse to be the second agent of a node.

    Raises:
        NodeTaken: one answers.
    """
    try:
        await command(connection, node_id, subjects.node_command(node_id, "status"), {}, ASK_S)
    except NodeSilent:
        return
    except BitingLipError as error:
        log.debug("another agent's answer: %s", error)
    raise NodeTaken(node_id=node_id)
