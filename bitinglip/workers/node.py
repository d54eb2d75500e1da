"""The node agent: `python -m bitinglip.workers.node`, configured by the environment.

Runs a worker process for each device, starts again those that end, hands back what a dead one held, and tells how the
machine is. Says one JSON line on standard output when its workers are ready, and one for each notice after that; its
log goes to standard error. The first SIGINT or SIGTERM stops the workers gracefully, the second one at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
import psutil

from bitinglip import __version__
from bitinglip.errors import BitingLipError, ChildFailed, NoServer
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.node import (
    NodeDrained,
    NodeEvent,
    NodeHeartbeat,
    NodeLabelled,
    NodeStarted,
    NodeStopped,
    NodeWorkerExited,
)
from bitinglip.events.streams import WORKERS
from bitinglip.events.task import Failure, FailureKind
from bitinglip.logs import configure_logging
from bitinglip.processes import how_it_ended
from bitinglip.settings import Settings, load
from bitinglip.workers.device import identify
from bitinglip.workers.logfile import LogFile
from bitinglip.workers.modelcontrol import ModelControl
from bitinglip.workers.modelkeeper import ModelKeeper
from bitinglip.workers.nodecontrol import Fleet, NodeControl, refuse_a_second
from bitinglip.workers.nodefacts import NodeDevices, disk_of, labels_of, open_node_devices, plan, system
from bitinglip.workers.release import release
from bitinglip.workers.slot import Exit, Slot

log = logging.getLogger("bitinglip.node")

PATIENCE_S = 5.0
"""Seconds beyond its own grace period that a worker gets to stop."""
RETRY_S = 0.25
TOLD_MOST = 500
"""Characters of a line of a worker's log in an event."""


class NodeAgent:
    """One machine's life: start the workers, keep them, tell, obey, stop."""

    def __init__(self, settings: Settings, event_log: EventLog, node_id: str, devices: NodeDevices) -> None:
        self.node_id = node_id
        self._settings = settings
        self._log = event_log
        self._devices = devices
        self._stop = asyncio.Event()
        self._signals = 0
        self._up = False
        self._tasks: set[asyncio.Task[None]] = set()
        numbered = enumerate(plan(settings, devices.names))
        slots = [self._slot(number, device) for number, device in numbered]
        by_name = {slot.worker_id: slot for slot in slots}
        self._fleet = Fleet(node_id, by_name, labels_of(settings.node.labels), settings.worker.labels)
        self._models = ModelKeeper(event_log, settings, node_id, self._models_changed)
        asked = ModelControl(self._models, event_log.clock).commands()
        self._control = NodeControl(self._fleet, self.tell, settings.worker.load_timeout_s, more=asked)

    async def run(self) -> None:
        """Run the workers until a signal comes.

        Raises:
            ChildFailed: none of the workers came up.
            BitingLipError: the start failed.
        """
        self._handle_signals()
        await self._remember()
        await self._models.open()
        service = await self._control.serve(self._log.connection)
        slots = self._fleet.slots.values()
        for slot in slots:
            slot.draining = self._fleet.draining
            slot.label(self._fleet.words())
        running = [asyncio.create_task(slot.run(), name=slot.worker_id) for slot in slots]
        reason = "error"
        try:
            await self.tell(await self._started())
            await self._come_up()
            self._say(self._ready())
            self._up = True
            self._say_what_is_missing()
            await self._until_stopped()
            reason = "signal"
        finally:
            await self._control.close()
            await self._models.close()
            for slot in slots:
                slot.close()
            await asyncio.gather(*running)
            await service.close()
            await self._try_to_tell(NodeStopped(node_id=self.node_id, reason=reason))

    async def tell(self, event: NodeEvent, ttl_s: int | None = None) -> None:
        """Put a fact about this node into the log.

        Raises:
            BitingLipError: the log does not take it.
        """
        subject = subjects.node_subject(self.node_id, event.type.removeprefix("node."))
        await self._log.append(self._log.fact_append(event, subject, self.node_id, ttl_s=ttl_s))

    # --- start and stop -----------------------------------------------------------------------------------------------

    def _slot(self, number: int, device: str) -> Slot:
        settings = self._settings
        worker_id = settings.worker.id if settings.worker.id and number == 0 else f"{self.node_id}-{number}"
        env = os.environ | {
            "BITINGLIP_WORKER_ID": worker_id,
            "BITINGLIP_WORKER_NODE": self.node_id,
            "BITINGLIP_WORKER_DEVICE": device,
        }
        file = LogFile(settings.data_dir / "logs" / f"{worker_id}.log", settings.node.log_max_bytes)
        return Slot(worker_id, device, env, file, settings.worker.grace_s + PATIENCE_S, self._exited)

    def _models_changed(self) -> None:
        for slot in self._fleet.slots.values():
            slot.look_for_models()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        self._signals += 1
        self._stop.set()
        log.info("stopping the workers" if self._signals == 1 else "stopping the workers at once")
        for slot in self._fleet.slots.values():
            slot.close()
            if self._signals > 1:
                slot.kill()

    async def _remember(self) -> None:
        """Take over what a former agent of this node was told: its labels, and whether it is drained."""
        labelled, drained, undrained = [
            await self._log.read_last(WORKERS, subjects.node_subject(self.node_id, event))
            for event in ("labelled", "drained", "undrained")
        ]
        if labelled is not None and isinstance(labelled.event, NodeLabelled):
            self._fleet.labels = labelled.event.labels
        if drained is not None and isinstance(drained.event, NodeDrained):
            self._fleet.draining = undrained is None or undrained.sequence < drained.sequence
            if self._fleet.draining:
                log.warning("this node is drained: `bitinglip node undrain %s` lets it work", self.node_id)

    async def _come_up(self) -> None:
        """Wait until each worker is ready, or has ended once."""
        slots = self._fleet.slots.values()
        states = await asyncio.gather(
            *[slot.until("ready", "drained", "draining", "waiting", "stopped") for slot in slots]
        )
        if states and set(states) == {"waiting"}:
            first = next(iter(slots))
            raise ChildFailed(name=first.worker_id, exit_status=1, told="\n  ".join(first.log.last_lines(12)))

    async def _until_stopped(self) -> None:
        beating = asyncio.create_task(self._beat(), name="heartbeats")
        try:
            await self._stop.wait()
        finally:
            beating.cancel()

    def _ready(self) -> dict[str, Any]:
        workers = [slot.ready for slot in self._fleet.slots.values() if slot.ready]
        models = sorted({model for worker in workers for model in worker["models"]})
        return {"ready": "node", "node_id": self.node_id, "workers": workers, "models": models, "pid": os.getpid()}

    def _say_what_is_missing(self) -> None:
        ready = [slot.ready for slot in self._fleet.slots.values() if slot.ready]
        served = {model for worker in ready for model in worker["models"]}
        for name in [name.partition("=")[0] for name in self._settings.worker.models]:
            if ready and name not in served:
                self._notice(f"{name} is not served: it is not here yet, or does not fit; the workers' logs say which")

    # --- telling ------------------------------------------------------------------------------------------------------

    async def _started(self) -> NodeStarted:
        return NodeStarted(
            node_id=self.node_id,
            pid=os.getpid(),
            release=__version__,
            system=system(),
            cpus=os.cpu_count() or 1,
            memory_total_bytes=psutil.virtual_memory().total,
            labels=self._fleet.labels,
            draining=self._fleet.draining,
            devices=await self._devices.read(),
        )

    async def _beat(self) -> None:
        """Tell how the node is, and look at the logs' sizes, for ever."""
        psutil.cpu_percent()  # the first call begins the count
        while True:
            try:
                await self.tell(await self._heartbeat(), ttl_s=self._settings.log.heartbeat_ttl_s)
            except BitingLipError as error:
                log.debug("no heartbeat: %s", error)
            for slot in self._fleet.slots.values():
                slot.log.bound()
            await asyncio.sleep(self._settings.node.heartbeat_s)

    async def _heartbeat(self) -> NodeHeartbeat:
        free, total = disk_of(self._settings.data_dir)
        return NodeHeartbeat(
            node_id=self.node_id,
            cpu_percent=psutil.cpu_percent(),
            memory_used_bytes=psutil.virtual_memory().used,
            disk_free_bytes=free,
            disk_total_bytes=total,
            rss_bytes=psutil.Process().memory_info().rss,
            draining=self._fleet.draining,
            devices=await self._devices.read(),
            workers=[slot.fact() for slot in self._fleet.slots.values()],
        )

    async def _try_to_tell(self, event: NodeEvent) -> None:
        try:
            await self.tell(event)
        except BitingLipError as error:
            log.warning("%s is not in the log: %s", event.type, error)

    def _notice(self, text: str) -> None:
        if self._up and _has_listener():  # the first line is the one that says that it is ready
            self._say({"notice": text})

    def _say(self, document: Mapping[str, Any]) -> None:
        """Say a line on standard output; somebody who does not read it is not waited for."""
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(sys.stdout.fileno(), orjson.dumps(document) + b"\n")

    # --- a worker's end -----------------------------------------------------------------------------------------------

    async def _exited(self, slot: Slot, end: Exit) -> None:
        """Hand back what the worker held, and tell of its end if nobody had asked for it."""
        reason = how_it_ended(end.status)
        asked_to_stop = end.restart_in_s is None
        kind: FailureKind = "worker_stopped" if asked_to_stop else "worker_crashed"
        failure = Failure(kind=kind, message=f"The worker {reason}.", retryable=True)
        released = await self._hand_back(slot.worker_id, end.held, failure)
        if asked_to_stop:
            return
        log.warning(
            "%s %s; starting it again in %g s (log: %s)", slot.worker_id, reason, end.restart_in_s, slot.log.path
        )
        self._notice(f"{slot.worker_id} {reason}; starting it again in {end.restart_in_s:g} s")
        self._do(self._try_to_tell(self._exit_event(slot, end, reason, released)))

    async def _hand_back(self, worker_id: str, held: frozenset[str], failure: Failure) -> int:
        """Hand back the work messages while their leases may still be the dead worker's; returns how many they were."""
        if not held:
            return 0
        deadline = asyncio.get_running_loop().time() + self._settings.worker.lease_s / 2
        while asyncio.get_running_loop().time() < deadline:
            try:
                await release(self._log, worker_id, held, failure)
            except NoServer as error:
                log.debug("not handed back yet: %s", error)
                await asyncio.sleep(RETRY_S)
            else:
                log.info("%d work messages of %s are handed back", len(held), worker_id)
                return len(held)
        return 0

    def _exit_event(self, slot: Slot, end: Exit, reason: str, released: int) -> NodeWorkerExited:
        return NodeWorkerExited(
            node_id=self.node_id,
            worker_id=slot.worker_id,
            reason=reason,
            status=end.status,
            told=[line[:TOLD_MOST] for line in end.told],
            released=released,
            restart_in_s=end.restart_in_s,
        )

    def _do(self, work: Any) -> None:
        """Do something beside the rest."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(settings: Settings) -> None:
    """Run one node until a signal comes.

    Raises:
        BitingLipError: the start failed (no server, another agent of this node, none of the workers came up).
    """
    node_id = identify(None, settings.worker.node, "").node_id
    devices = await open_node_devices()
    event_log = await EventLog.connect(settings.nats, f"/node/{node_id}")
    try:
        await refuse_a_second(event_log.connection, node_id)
        await NodeAgent(settings, event_log, node_id, devices).run()
    finally:
        await event_log.close()


def _has_listener() -> bool:
    """Tell whether standard output goes elsewhere than the log: to a program that started us."""
    out, err = os.fstat(sys.stdout.fileno()), os.fstat(sys.stderr.fileno())
    return not sys.stdout.isatty() and (out.st_dev, out.st_ino) != (err.st_dev, err.st_ino)


def main() -> int:
    """Run the process; returns its exit code."""
    try:
        settings, _ = load()
        configure_logging(settings.log)
        if _has_listener():
            os.set_blocking(sys.stdout.fileno(), False)
        asyncio.run(serve(settings))
    except BitingLipError as error:
        sys.stderr.write(f"error: {error}\nremedy: {error.remedy}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
