"""The worker process: `python -m bitinglip.workers.main`, configured by the environment.

With `--tether FD` it is at the end of a socket that its node agent left it: it obeys what comes from there, tells what
it holds, and stops when the agent is gone.

Says one JSON line on standard output when it is ready; its log goes to standard error. The first SIGINT or SIGTERM lets
what runs end within the grace period, the second hands it back at once.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson
import psutil
import uvloop

from bitinglip import __version__
from bitinglip.errors import BitingLipError, DeviceLost, NoServer
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.registry import Event
from bitinglip.events.worker import (
    DeviceReading,
    ServedModel,
    WorkerDeviceLost,
    WorkerDrained,
    WorkerHeartbeat,
    WorkerModelsChanged,
    WorkerStarted,
    WorkerStopped,
    WorkerUndrained,
)
from bitinglip.logs import configure_logging
from bitinglip.models.registry import register
from bitinglip.models.store import StoredModel
from bitinglip.settings import Settings, load
from bitinglip.workers.agent import Agent
from bitinglip.workers.device import Devices, identify, open_devices
from bitinglip.workers.identity import Identity
from bitinglip.workers.shelf import Shelf
from bitinglip.workers.tether import Tether

log = logging.getLogger("bitinglip.worker")

LEAST_PAUSE_S = 1.0
"""Least time between two looks at the devices, however many attempts fail."""
AGAIN_S = 1.0
"""Pause before models that have come or gone are told once more."""


class WorkerProcess:
    """One worker's life: register, announce, work, say goodbye."""

    def __init__(
        self,
        settings: Settings,
        event_log: EventLog,
        identity: Identity,
        shelf: Shelf,
        models: list[StoredModel],
        devices: Devices,
        tether: Tether | None = None,
    ) -> None:
        self._settings = settings
        self._log = event_log
        self._identity = identity
        self._shelf = shelf
        self._models = models
        self._models_moved = asyncio.Event()
        specs = [shelf.spec(model) for model in self._models]
        self._agent = Agent(event_log, settings, identity, specs, tether)
        self._tether = tether
        self._doing: set[asyncio.Task[None]] = set()
        self._devices = devices
        self._lost: DeviceLost | None = None
        self._signals = 0

    async def run(self) -> None:
        """Work until a signal comes.

        Raises:
            DeviceLost: a device vanished; what ran is handed back.
            BitingLipError: the start failed.
        """
        self._handle_signals()
        obeying = asyncio.create_task(self._obey(self._tether), name="tether") if self._tether else None
        try:
            await self._work()
        finally:
            if obeying is not None:
                obeying.cancel()

    async def _work(self) -> None:
        for model in self._models:
            await register(self._log, model)
        await self._tell(self._started())
        self._agent.know_card((await self._devices.read()).memory_total_bytes)
        beside = [asyncio.create_task(self._heartbeats(), name="heartbeats")]
        if self._devices.tell_power:
            following = self._agent.runner.energy.follow(self._devices.power_w)
            beside.append(asyncio.create_task(following, name="energy"))
        if self._tether is not None:
            beside.append(asyncio.create_task(self._tell_drains(self._tether), name="drains"))
            beside.append(asyncio.create_task(self._follow_models(), name="models"))
        self._say_ready()
        try:
            await self._agent.run()
        finally:
            for task in beside:
                task.cancel()
            await self._say_goodbye()
        if self._lost is not None:
            raise self._lost

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    async def _obey(self, tether: Tether) -> None:
        """Do what the node agent says; without it, stop."""
        async with aclosing(tether.commands()) as commands:
            async for command in commands:
                match command["command"]:
                    case "drain":
                        self._agent.drain()
                    case "undrain":
                        self._agent.undrain()
                    case "labels":
                        self._agent.know_labels(command["labels"])
                    case "models":
                        self._models_moved.set()
                    case "load" | "unload" as what:
                        self._do(self._load_or_unload(tether, what == "load", command["model"], command["id"]))
                    case other:
                        log.warning("an unknown command of the node agent: %s", other)
        # At once: another agent may soon start a worker of this name.
        log.warning("the node agent is gone: stopping; what runs is handed back")
        self._agent.runner.stop_after(0.0)
        self._agent.stop()

    async def _follow_models(self) -> None:
        """Serve what is on the disk, for ever: it is looked at again whenever the node agent says so."""
        while True:
            await self._models_moved.wait()
            self._models_moved.clear()
            try:
                models = await asyncio.to_thread(self._shelf.look)
                if models != self._models:
                    await self._change_to(models)
            except (BitingLipError, OSError) as error:  # the server is away, or a folder went while it was looked at
                log.warning("the models stay as they are for now: %s", error)
                self._models_moved.set()
                await asyncio.sleep(AGAIN_S)

    async def _change_to(self, models: list[StoredModel]) -> None:
        for model in [model for model in models if model not in self._models]:
            await register(self._log, model)
        worker_id, node_id = self._identity.worker_id, self._identity.node_id
        await self._tell(WorkerModelsChanged(worker_id=worker_id, node_id=node_id, models=_served(models)))
        self._models = models
        self._agent.serve([self._shelf.spec(model) for model in models])
        log.info("serving %s", ", ".join(model.reference for model in models) or "nothing")

    async def _load_or_unload(self, tether: Tether, load: bool, model: str, number: int) -> None:
        runner = self._agent.runner
        problem = await (runner.load(model) if load else runner.unload(model))
        tether.say(answer=number, problem=problem)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._doing.add(task)
        task.add_done_callback(self._doing.discard)

    async def _tell_drains(self, tether: Tether) -> None:
        """Tell, for ever, when the worker is drained and when it is so no more."""
        names = {"worker_id": self._identity.worker_id, "node_id": self._identity.node_id}
        while True:
            await self._agent.when_drained()
            tether.say(drained=True)
            await self._try_to_tell(WorkerDrained(**names))
            await self._agent.when_undrained()
            await self._try_to_tell(WorkerUndrained(**names))

    async def _try_to_tell(self, event: Event) -> None:
        try:
            await self._tell(event)
        except BitingLipError as error:
            log.warning("%s is not in the log: %s", event.type, error)

    def _on_signal(self) -> None:
        self._signals += 1
        if self._signals == 1:
            log.info("stopping; what runs may end within %g s", self._settings.worker.grace_s)
            self._agent.stop()
        else:
            self._agent.runner.stop_after(0.0)

    def _say_ready(self) -> None:
        ready = {
            "ready": "worker",
            "worker_id": self._identity.worker_id,
            "models": [model.reference for model in self._models],
            "pid": os.getpid(),
        }
        sys.stdout.write(orjson.dumps(ready).decode() + "\n")
        sys.stdout.flush()

    async def _heartbeats(self) -> None:
        """Look at the devices and say what is, for ever; a lost device ends the worker."""
        while True:
            try:
                reading = await self._devices.read()
                self._agent.runner.engine.settle()  # the engine process may have ended while it was idle
                if self._agent.facts is not None:
                    self._agent.facts.device(reading.memory_total_bytes)
            except DeviceLost as lost:
                await self._end_without(lost)
                return
            try:
                await self._tell(self._heartbeat(reading), ttl_s=self._settings.log.heartbeat_ttl_s)
            except BitingLipError as error:
                log.debug("no heartbeat: %s", error)
            await self._pause()

    async def _pause(self) -> None:
        """Wait for the next heartbeat; it comes early if an attempt fails, for that may be a device's fault."""
        whole_s = self._settings.worker.heartbeat_s
        least_s = min(LEAST_PAUSE_S, whole_s)
        await asyncio.sleep(least_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(whole_s - least_s):
                await self._agent.noteworthy.wait()
        self._agent.noteworthy.clear()

    async def _end_without(self, lost: DeviceLost) -> None:
        """Tell that a device is lost, hand back what runs, and stop."""
        self._lost = lost
        log.error("%s What runs is handed back. %s", lost, lost.remedy)
        worker_id, node_id = self._identity.worker_id, self._identity.node_id
        try:
            await self._tell(
                WorkerDeviceLost(worker_id=worker_id, node_id=node_id, device=lost.device, reason=lost.reason)
            )
        except BitingLipError as error:
            log.warning("the loss is not in the log: %s", error)
        self._agent.runner.stop_after(0.0)  # first: `stop` gives a grace period to those who have none yet
        self._agent.stop()

    def _heartbeat(self, reading: DeviceReading) -> WorkerHeartbeat:
        counts, card = self._agent.runner.counts, self._agent.card()
        return WorkerHeartbeat(
            worker_id=self._identity.worker_id,
            node_id=self._identity.node_id,
            running=counts.running,
            done=counts.done,
            failed=counts.failed,
            loaded=sorted(self._agent.runner.loaded),
            rss_bytes=psutil.Process().memory_info().rss,
            device=reading,
            draining=self._agent.draining or None,
            loading=card.loading,
            labels=sorted(card.labels),
            pinned=sorted(card.pinned),
            taken_bytes={held.reference: held.taken_bytes for held in card.loaded},
            budget_bytes=card.budget_bytes,
            max_loaded=self._settings.worker.max_loaded,
        )

    async def _say_goodbye(self) -> None:
        goodbye = WorkerStopped(
            worker_id=self._identity.worker_id,
            node_id=self._identity.node_id,
            reason="error" if self._lost else "signal",
        )
        try:
            await self._tell(goodbye)
        except NoServer as error:
            log.debug("no goodbye: %s", error)

    async def _tell(self, event: Event, ttl_s: int | None = None) -> None:
        worker_id = self._identity.worker_id
        subject = subjects.worker_subject(worker_id, event.type.removeprefix("worker."))
        await self._log.append(self._log.fact_append(event, subject, worker_id, ttl_s=ttl_s))

    def _started(self) -> WorkerStarted:
        return WorkerStarted(
            worker_id=self._identity.worker_id,
            node_id=self._identity.node_id,
            pid=os.getpid(),
            device=self._identity.device,
            release=__version__,
            models=_served(self._models),
        )


async def serve(settings: Settings, tether_fd: int | None = None) -> None:
    """Run one worker until a signal comes, or its node agent is gone.

    Raises:
        BitingLipError: the start failed (no server, no such model, no such device), or a device was lost.
    """
    identity = identify(settings.worker.id, settings.worker.node, settings.worker.device)
    devices = await open_devices(settings.worker.device)
    # Without a node agent nobody would say that a model has come.
    shelf = Shelf(settings, await devices.read(), later=tether_fd is not None)
    models = shelf.first_look()
    event_log = await EventLog.connect(settings.nats, f"/worker/{identity.worker_id}")
    tether = None if tether_fd is None else await Tether.open(tether_fd)
    try:
        await WorkerProcess(settings, event_log, identity, shelf, models, devices, tether).run()
    finally:
        if tether is not None:
            tether.close()
        await event_log.close()


def _served(models: Sequence[StoredModel]) -> list[ServedModel]:
    return [ServedModel(kind=model.kind, reference=model.reference, revision=model.revision) for model in models]


def main() -> int:
    """Run the process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="bitinglip.workers.main", description="One worker.")
    parser.add_argument("--tether", type=int, help="descriptor of the socket to the node agent")
    tether_fd: int | None = parser.parse_args().tether
    try:
        settings, _ = load()
        configure_logging(settings.log)
        uvloop.run(serve(settings, tether_fd))
    except BitingLipError as error:
        sys.stderr.write(f"error: {error}\nremedy: {error.remedy}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
