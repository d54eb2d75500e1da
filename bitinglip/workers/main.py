"""The worker process: `python -m bitinglip.workers.main`, configured by the environment.

Says one JSON line on standard output when it is ready; its log goes to standard error. The first SIGINT or SIGTERM lets
what runs end within the grace period, the second hands it back at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterable
from typing import Any, cast

import orjson
import psutil
import uvloop

from bitinglip import __version__
from bitinglip.errors import BitingLipError, NoServer
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.registry import Event
from bitinglip.events.worker import ServedModel, WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.logs import configure_logging
from bitinglip.models.registry import register
from bitinglip.models.store import StoredModel, find_models
from bitinglip.settings import Settings, Worker, load
from bitinglip.workers.agent import Agent
from bitinglip.workers.batch import Identity
from bitinglip.workers.device import identify
from bitinglip.workers.engine import ModelSpec

log = logging.getLogger("bitinglip.worker")


class WorkerProcess:
    """One worker's life: register, announce, work, say goodbye."""

    def __init__(self, settings: Settings, event_log: EventLog, identity: Identity, models: list[StoredModel]) -> None:
        self._settings = settings
        self._log = event_log
        self._identity = identity
        self._models = models
        self._agent = Agent(event_log, settings, identity, [_spec(model, settings.worker) for model in models])
        self._signals = 0

    async def run(self) -> None:
        """Work until a signal comes.

        Raises:
            BitingLipError: the start failed.
        """
        self._handle_signals()
        for model in self._models:
            await register(self._log, model)
        await self._tell(self._started())
        heartbeat = asyncio.create_task(self._heartbeats(), name="heartbeats")
        self._say_ready()
        try:
            await self._agent.run()
        finally:
            heartbeat.cancel()
            await self._say_goodbye()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

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
        memory = psutil.Process().memory_info
        while True:
            counts = self._agent.runner.counts
            beat = WorkerHeartbeat(
                worker_id=self._identity.worker_id,
                node_id=self._identity.node_id,
                running=counts.running,
                done=counts.done,
                failed=counts.failed,
                loaded=sorted(self._agent.runner.loaded),
                rss_bytes=memory().rss,
            )
            try:
                await self._tell(beat, ttl_s=self._settings.log.heartbeat_ttl_s)
            except BitingLipError as error:
                log.debug("no heartbeat: %s", error)
            await asyncio.sleep(self._settings.worker.heartbeat_s)

    async def _say_goodbye(self) -> None:
        goodbye = WorkerStopped(worker_id=self._identity.worker_id, node_id=self._identity.node_id, reason="signal")
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
            models=[
                ServedModel(kind=model.kind, reference=model.reference, revision=model.revision)
                for model in self._models
            ],
        )


async def serve(settings: Settings) -> None:
    """Run one worker until a signal comes.

    Raises:
        BitingLipError: the start failed: no server, no such model.
    """
    identity = identify(settings.worker.id, settings.worker.node, settings.worker.device)
    models = find_models(settings.worker.models, settings.models_dir, settings.models.hub_cache)
    event_log = await EventLog.connect(settings.nats, f"/worker/{identity.worker_id}")
    try:
        await WorkerProcess(settings, event_log, identity, models).run()
    finally:
        await event_log.close()


def main() -> int:
    """Run the process; returns its exit code."""
    try:
        settings, _ = load()
        configure_logging(settings.log)
        uvloop.run(serve(settings))
    except BitingLipError as error:
        sys.stderr.write(f"error: {error}\nremedy: {error.remedy}\n")
        return error.exit_code
    return 0


def _settings_of(entries: Iterable[str], default: str = "") -> dict[str, str]:
    """Read what is set for single models, as `REFERENCE=VALUE` or, for the default, `REFERENCE`."""
    pairs = [entry.partition("=") for entry in entries]
    return {reference: value or default for reference, _, value in pairs}


def _spec(model: StoredModel, settings: Worker) -> ModelSpec:
    return ModelSpec(
        kind=model.kind,
        reference=model.reference,
        revision=model.revision,
        path=str(model.path) if model.path else None,
        parts={part: str(folder) for part, folder in model.parts.items()},
        trust_pickles=model.reference in settings.trust_pickles,
        trust_code=model.reference in settings.trust_code,
        quantize=cast("Any", _settings_of(settings.quantize).get(model.reference)),
        vllm=_settings_of(settings.vllm, "start").get(model.reference),
    )


if __name__ == "__main__":
    sys.exit(main())
