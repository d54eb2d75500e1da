"""A batch on its way: open, assign, load, run, settle. Each step takes the attempts that the one before left over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import suppress
from typing import Any

from bitinglip.errors import (
    ArtifactExpired,
    ArtifactNotFound,
    EngineDied,
    NoServer,
    PayloadTooLarge,
    TaskIsForgotten,
)
from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery
from bitinglip.events.task import Failure
from bitinglip.events.worker import WorkerEngineExited, WorkerEvent, WorkerModelLoaded
from bitinglip.settings import Settings
from bitinglip.tasks.commands import TaskCommand
from bitinglip.workers.attempt import Attempt, Scribe
from bitinglip.workers.batcher import group
from bitinglip.workers.bigger import outgrown
from bitinglip.workers.company import Rooms, apart, company
from bitinglip.workers.energy import Energy
from bitinglip.workers.engine import (
    JOINING_KINDS,
    JobAnswer,
    JobCancelled,
    JobFailed,
    JobProgressed,
    JobSpec,
    JobSucceeded,
    Loaded,
    LoadFailed,
    Loading,
    ModelSpec,
)
from bitinglip.workers.enginehost import EngineHost
from bitinglip.workers.enginekeeper import EngineKeeper
from bitinglip.workers.files import Files
from bitinglip.workers.identity import Counts, Identity
from bitinglip.workers.lease import LeaseKeeper
from bitinglip.workers.names import Names
from bitinglip.workers.payload import read_params, store_result
from bitinglip.workers.peers import read_cards
from bitinglip.workers.words import Words

log = logging.getLogger(__name__)

CANCEL_PATIENCE_S = 10.0
"""How long a running step may take to hear of a time-out before its engine process is killed."""
PRIVATELY = "it ended while a private task ran; no more is told of it"
LOADING_TICK_S = 0.5
"""Seconds between two ticks of the tasks that wait for a model to load."""


class BatchRunner:
    """Runs batches on the worker's engine process: one at a time, or together where the engine lets tasks join."""

    def __init__(
        self,
        event_log: EventLog,
        scribe: Scribe,
        leases: LeaseKeeper,
        settings: Settings,
        identity: Identity,
        models: list[ModelSpec],
        files: Files,
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """`leaving` tells whether what has not begun is to be handed back."""
        self._leaving = leaving
        self._rooms = Rooms()
        self._words = Words(identity, event_log.clock)
        self._waiting = 0
        self._log = event_log
        self._files = files
        self._scribe = scribe
        self._leases = leases
        self._settings = settings
        self._identity = identity
        self._models = _by_name(models)
        self.engine = EngineKeeper(settings.worker, identity.device, files.folder)
        self._running: dict[str, Attempt] = {}
        self._assigning: dict[str, Attempt] = {}
        """Those whose assignment is being written: it may be in the log before we know, and be cancelled there."""
        self._stopped = False
        self._stop_timer: asyncio.TimerHandle | None = None
        self._stop_at = 0.0
        self.counts = Counts()
        self.energy = Energy()
        self.device_bytes: int | None = None
        """Memory of the worker's device; none: not known."""
        self.freed = asyncio.Event()
        """Set whenever a task is settled, and there is room for another one."""
        event_log.connection.on_reconnect(self._reconnected)

    async def serve(self, models: Seq[ModelSpec]) -> None:
        """Run these models from now on; the others leave the memory."""
        self._models = _by_name(models)
        await self.drop_strangers()

    async def drop_strangers(self) -> None:
        """Drop from memory what is no more to be run: models that are not served, and their former revisions."""
        ours = {model.key for model in self._models.values()}
        await self.engine.drop_keys(self.engine.keys - ours)

    @property
    def loaded(self) -> frozenset[str]:
        """References of the models in memory."""
        return self.engine.loaded

    @property
    def held(self) -> int:
        """Tasks in hand: those that run, and those that wait to be run by themselves."""
        return len(self._running) + self._waiting

    def joins(self, reference: str) -> bool:
        """Tell whether new tasks may join a running batch of this model."""
        return any(kind in JOINING_KINDS for kind, name in self._models if name == reference)

    async def preload(self, reference: str) -> None:
        """Load a model that nobody has asked for yet; one that cannot be loaded is left to those who will."""
        if (problem := await self.load(reference)) is not None:
            log.warning("%s is not loaded beforehand: %s", reference, problem)

    # --- the pipeline -------------------------------------------------------------------------------------------------

    async def run(self, deliveries: Seq[Delivery]) -> None:
        """Run what these work messages stand for to its outcome in the log.

        Raises:
            NoServer: the server went away while the worker is being stopped; the leases settle it.
        """
        self._waiting += len(deliveries)
        waiting = len(deliveries)
        try:
            attempts = await self._scribe.open_all(deliveries)
            self._let_go(deliveries, attempts)
            parts = apart(attempts, lambda attempt: company(attempt.task, self._settings.worker.max_batch))
            for part in parts:
                async with self._rooms.enter(alone=part[0].task.crashes > 0):
                    self._waiting -= len(part)
                    waiting -= len(part)
                    await (self._hand_back(part) if self._leaving() else self._run_together(part))
        finally:
            self._waiting -= waiting
            self.freed.set()

    async def _hand_back(self, attempts: list[Attempt]) -> None:
        for attempt in attempts:
            attempt.settled = True
            await attempt.delivery.nak()

    async def _run_together(self, attempts: list[Attempt]) -> None:
        self._assigning |= {attempt.id: attempt for attempt in attempts}
        try:
            assigned = await self._assign(attempts)
            self._running |= {attempt.id: attempt for attempt in assigned}
        finally:
            for attempt in attempts:
                self._assigning.pop(attempt.id, None)
        self.counts.running = len(self._running)
        try:
            for batch in group(assigned, self._runs_on).values():
                await self._run_on(self._model(batch[0]), batch)
        finally:
            for attempt in assigned:
                self._leave(attempt)
            if not self._running:
                await self._files.tidy()

    def _let_go(self, deliveries: Seq[Delivery], attempts: Seq[Attempt]) -> None:
        """Let go of the leases of work messages that came to nothing."""
        opened = {attempt.delivery.reply for attempt in attempts}
        for delivery in [each for each in deliveries if each.reply not in opened]:
            self._leases.release(delivery)

    async def _assign(self, attempts: list[Attempt]) -> list[Attempt]:
        commands = [(each, self._words.assignment(each, self._model(each), len(attempts))) for each in attempts]
        outcomes = await self._scribe.write(commands)
        ours: list[Attempt] = []
        for attempt, outcome in zip(attempts, outcomes, strict=True):
            if outcome is None and attempt.task.state == "running":
                attempt.started = time.monotonic()
                ours.append(attempt)
            else:
                await self._settle(attempt, outcome)
        return ours

    def _model(self, attempt: Attempt) -> ModelSpec | None:
        return self._models.get(_kind_and_model(attempt))

    def _runs_on(self, attempt: Attempt) -> tuple[str, str]:
        """Return what tells the attempts apart that do not run together: not by which of its names a model is asked."""
        model = self._model(attempt)
        return _kind_and_model(attempt) if model is None else (model.kind, model.reference)

    async def _run_on(self, model: ModelSpec | None, batch: list[Attempt]) -> None:
        if model is None:
            unknown = Failure(kind="bad_input", message="This worker has no such model.", retryable=False)
            await self._fail(batch, unknown)
            return
        host: EngineHost | None = None
        try:
            host = await self._host()
            loaded = await self._load(host, model, batch)
            if isinstance(loaded, LoadFailed):
                await self._fail(batch, loaded.failure)
            else:
                await self._run_jobs(host, loaded, batch)
        except EngineDied as died:
            await self._engine_died(host, died, batch)

    async def _host(self) -> EngineHost:
        """Return the engine process.

        Raises:
            EngineDied: the worker is being stopped, since before there was anything to be ended by force.
        """
        host = await self.engine.get()
        if self._stopped:
            raise EngineDied(problem="the worker is being stopped")
        return host

    async def _run_jobs(self, host: EngineHost, loaded: Loaded, batch: list[Attempt]) -> None:
        jobs = await self._jobs(batch)
        await self._end_cancelled(batch)  # what was cancelled meanwhile: the engine has not heard of it
        by_id = {attempt.id: attempt for attempt in batch if not attempt.settled}
        jobs = [job for job in jobs if job.task_id in by_id]
        for attempt in by_id.values():
            self._watch_time(host, attempt)
            self.energy.begin(attempt.id)
        async with self.engine.watched(host):
            async for messages in host.run(loaded.model_key, jobs):
                await self._heard(by_id, messages, loaded)
        left = [attempt for attempt in batch if not attempt.settled]
        await self._fail(left, Failure(kind="engine_error", message="The engine gave no answer.", retryable=True))

    async def _heard(self, by_id: dict[Any, Attempt], messages: Seq[JobProgressed | JobAnswer], loaded: Loaded) -> None:
        ticks: list[tuple[Attempt, TaskCommand]] = []
        ends: list[tuple[Attempt, TaskCommand]] = []
        for message in messages:
            attempt = by_id.get(message.task_id)
            if attempt is None or attempt.settled:
                continue
            if isinstance(message, JobProgressed):
                ticks.append((attempt, self._words.progress(attempt, message)))
            else:
                ends.append((attempt, await self._end(attempt, message, loaded)))
        await self._write_ticks(ticks)
        await self._write_ends(ends)

    # --- steps --------------------------------------------------------------------------------------------------------

    async def _load(self, host: EngineHost, model: ModelSpec, batch: list[Attempt]) -> Loaded | LoadFailed:
        if (held := host.loaded.get(model.key)) is not None:
            return held
        started = time.monotonic()
        answer = await self._load_and_tell(host, model, batch)
        if isinstance(answer, Loaded):
            for attempt in batch:
                attempt.load_ms = (time.monotonic() - started) * 1000
            await self._tell(
                WorkerModelLoaded(
                    worker_id=self._identity.worker_id,
                    node_id=self._identity.node_id,
                    kind=model.kind,
                    reference=model.reference,
                    revision=model.revision,
                    device=answer.device,
                    dtype=answer.dtype,
                    need_bytes=answer.need_bytes,
                    memory_bytes=answer.memory_bytes,
                    load_ms=round(answer.load_ms, 3),
                )
            )
        return answer

    async def _load_and_tell(self, host: EngineHost, model: ModelSpec, batch: list[Attempt]) -> Loaded | LoadFailed:
        """Load a model; the tasks that wait for it are told how far it is, and those that are cancelled wait no more.

        Raises:
            EngineDied: the process ended meanwhile, or took too long and was ended.
        """
        latest: deque[Loading] = deque(maxlen=1)
        loaded = asyncio.Event()
        telling = asyncio.create_task(self._tell_loading(batch, latest, loaded), name="loading")
        try:
            return await self.engine.load(host, model, latest.append)
        finally:
            loaded.set()
            await telling

    async def _tell_loading(self, batch: list[Attempt], latest: deque[Loading], loaded: asyncio.Event) -> None:
        while not loaded.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOADING_TICK_S):
                    await loaded.wait()
            await self._end_cancelled(batch)
            waiting = [attempt for attempt in batch if not attempt.settled]
            if latest and waiting and not loaded.is_set():
                message = latest.pop()
                tick = JobProgressed(task_id="", step=message.done, total=message.total, unit="load")
                await self._write_ticks([(attempt, self._words.progress(attempt, tick)) for attempt in waiting])

    async def _jobs(self, batch: list[Attempt]) -> list[JobSpec]:
        jobs: list[JobSpec] = []
        await self._end_cancelled(batch)
        for attempt in [attempt for attempt in batch if not attempt.settled]:
            try:
                params = await self._files.patiently(lambda attempt=attempt: read_params(self._log.connection, attempt))
                files = await self._files.fetch(attempt.task.submitted.kind, params)
                jobs.append(JobSpec(task_id=attempt.id, params=params, files=files))
            except (ArtifactNotFound, ArtifactExpired, TaskIsForgotten) as error:
                await self._fail([attempt], Failure(kind="bad_input", message=str(error), retryable=False))
        return jobs

    async def _end_cancelled(self, batch: Seq[Attempt]) -> None:
        """End those that were cancelled before the engine had them, until none is."""
        while cancelled := [each for each in batch if not each.settled and (each.cancelled or each.task.cancel)]:
            for attempt in cancelled:
                await self._scribe.refresh(attempt)
            await self._write_ends([(attempt, self._words.stopped(attempt)) for attempt in cancelled])

    async def _end(self, attempt: Attempt, answer: JobAnswer, loaded: Loaded) -> TaskCommand:
        match answer:
            case JobSucceeded():
                used = answer.usage.model_copy(update={"energy_j": self.energy.end(attempt.id)})
                files: list[str] = []
                stored = await self._files.store(answer.result, self._files.sealing(attempt, files))
                most = self._settings.log.inline_max_bytes
                result, reference = await self._files.patiently(
                    lambda: store_result(self._log.connection, attempt, stored, most)
                )
                return self._words.success(attempt, answer, used, loaded, result, reference, tuple(files))
            case JobFailed():
                return await self._failed(attempt, answer.failure)
            case JobCancelled():
                return self._words.stopped(attempt)

    async def _failed(self, attempt: Attempt, failure: Failure) -> TaskCommand:
        """Say that an attempt failed; if its device was too small, the next is for a bigger one, if there is one."""
        if failure.kind != "out_of_memory" or self.device_bytes is None:
            return self._words.failure(attempt, failure)
        try:
            peers = await read_cards(self._log, self._identity.worker_id, self._settings.worker.heartbeat_s)
        except NoServer as error:
            log.debug("nobody knows of bigger cards: %s", error)
            return self._words.failure(attempt, failure)
        found = outgrown(attempt.task, failure, self.device_bytes, peers)
        return self._words.failure(attempt, found.failure, found.next_vram_gb)

    async def _write_ticks(self, ticks: list[tuple[Attempt, TaskCommand]]) -> None:
        """Ticks of one attempt follow one another; those of different attempts travel together."""
        while ticks:
            now = {attempt.id: (attempt, command) for attempt, command in reversed(ticks)}
            ticks = [tick for tick in ticks if now[tick[0].id][1] is not tick[1]]
            try:
                outcomes = await self._scribe.write(list(now.values()), patient=False)
            except (NoServer, PayloadTooLarge) as error:
                log.debug("ticks are lost: %s", error)
                return
            for (attempt, _), outcome in zip(now.values(), outcomes, strict=True):
                if outcome is not None:
                    await self._lost(attempt, outcome)

    async def _write_ends(self, ends: list[tuple[Attempt, TaskCommand]]) -> None:
        if not ends:
            return
        outcomes = await self._scribe.write(ends)
        for (attempt, _), outcome in zip(ends, outcomes, strict=True):
            self.counts.done += attempt.task.state == "succeeded"
            self.counts.failed += attempt.task.state not in {"succeeded", "cancelled"}
            await self._settle(attempt, outcome)

    async def _settle(self, attempt: Attempt, outcome: Any) -> None:
        try:
            await self._scribe.settle(attempt, outcome)
        except NoServer as error:
            log.debug("task %s: its work message comes back once more: %s", attempt.id, error)
        self._leases.release(attempt.delivery)
        self._leave(attempt)
        self.freed.set()

    def _leave(self, attempt: Attempt) -> None:
        """Count the attempt as running no more; a later one of the same task stays."""
        if self._running.get(attempt.id) is attempt:
            del self._running[attempt.id]
            self.energy.end(attempt.id)
        self.counts.running = len(self._running)

    async def _lost(self, attempt: Attempt, outcome: Any) -> None:
        if not attempt.settled:
            log.warning("task %s: attempt %d is no longer ours", attempt.id, attempt.task.attempt)
            self._cancel_job(attempt)
            await self._settle(attempt, outcome)

    async def _fail(self, batch: Seq[Attempt], failure: Failure) -> None:
        await self._write_ends(
            [(attempt, self._words.failure(attempt, failure)) for attempt in batch if not attempt.settled]
        )

    async def _engine_died(self, host: EngineHost | None, died: EngineDied, batch: list[Attempt]) -> None:
        first = self.engine.forget(host)
        if self._stopped:
            failure = Failure(kind="worker_stopped", message="The worker was stopped.", retryable=True)
        else:
            failure = Failure(kind="engine_crashed", message=died.problem, retryable=True)
            problem = PRIVATELY if any(attempt.task.submitted.private for attempt in batch) else died.problem
            if first:
                log.error("the engine process died: %s", problem)
                await self._tell(
                    WorkerEngineExited(
                        worker_id=self._identity.worker_id, node_id=self._identity.node_id, reason=problem[:2000]
                    )
                )
        timed_out = Failure(
            kind="timed_out", message="The attempt ran too long; its engine was killed.", retryable=True
        )
        await self._fail([attempt for attempt in batch if attempt.timed_out], timed_out)
        await self._fail([attempt for attempt in batch if not attempt.timed_out], failure)

    # --- models, by hand ----------------------------------------------------------------------------------------------

    async def load(self, reference: str) -> str | None:
        """Load a model that this worker serves; returns what went wrong, if anything."""
        model = self._named(reference)
        if model is None:
            return f"this worker does not serve {reference}"
        try:
            loaded = await self._load(await self.engine.get(), model, [])
        except EngineDied as died:
            return died.problem
        return loaded.failure.message if isinstance(loaded, LoadFailed) else None

    async def unload(self, reference: str) -> str | None:
        """Drop a model from memory; returns what is against it, if anything."""
        model = self._named(reference)
        names = {name for (_, name), each in self._models.items() if each == model} | {reference}
        if any(attempt.task.submitted.model in names for attempt in self._running.values()):
            return f"a task runs on {reference}"
        await self.engine.drop(names)
        return None

    def _named(self, reference: str) -> ModelSpec | None:
        return next((model for (_, name), model in self._models.items() if name == reference), None)

    # --- cancel, time-out, stop ---------------------------------------------------------------------------------------

    async def listen_for_cancels(self) -> Any:
        """Hear of every cancel request in the cluster; those for our running tasks are passed on at once."""

        async def heard(msg: Any) -> None:
            task_id = msg.subject.split(".")[3]
            attempt = self._running.get(task_id) or self._assigning.get(task_id)
            if attempt is not None:
                self._cancel_job(attempt)

        return await self._log.connection.subscribe(subjects.LIVE_CANCEL_REQUESTS, heard)

    def stop_after(self, grace_s: float) -> None:
        """End what runs by force after the grace period, the shortest that was given: its tasks are handed back."""
        loop, timer = asyncio.get_running_loop(), self._stop_timer
        stop_at = loop.time() + grace_s
        if timer is None or stop_at < self._stop_at:
            if timer is not None:
                timer.cancel()
            self._stop_at = stop_at  # uvloop's handle of a delay of 0 does not tell
            self._stop_timer = loop.call_later(grace_s, self._stop_now)

    async def close(self) -> None:
        """End the engine process."""
        self._stopped = True
        if self._stop_timer is not None:
            self._stop_timer.cancel()
        await self.engine.close()

    def _stop_now(self) -> None:
        self._stopped = True
        if self._running:
            log.warning("%d running tasks are handed back", len(self._running))
            self.engine.kill()

    def _cancel_job(self, attempt: Attempt) -> None:
        attempt.cancelled = True
        self.engine.cancel(attempt.id)

    def _watch_time(self, host: EngineHost, attempt: Attempt) -> None:
        limit_ms = attempt.task.submitted.timeout_ms
        if limit_ms is None:
            return
        loop = asyncio.get_running_loop()

        def time_is_up() -> None:
            attempt.timed_out = True
            host.cancel(attempt.id)
            attempt.timer = loop.call_later(CANCEL_PATIENCE_S, lambda: None if attempt.settled else self.engine.kill())

        attempt.timer = loop.call_later(limit_ms / 1000, time_is_up)

    def _reconnected(self) -> None:
        """A cancel request may have passed while the connection was away."""
        self._refreshing = asyncio.ensure_future(self._refresh_running())

    async def _refresh_running(self) -> None:
        for attempt in list(self._running.values()):
            try:
                last = await self._log.read_task(attempt.id, after=attempt.task.sequence)
            except NoServer:
                return
            if any(recorded.type == "task.cancel_requested" for recorded in last):
                self._cancel_job(attempt)

    async def _tell(self, event: WorkerEvent) -> None:
        """Tell a fact about this worker; while the server is away it is not told."""
        subject = subjects.worker_subject(self._identity.worker_id, event.type.removeprefix("worker."))
        try:
            await self._log.append(self._log.fact_append(event, subject, self._identity.worker_id))
        except NoServer as error:
            log.debug("not told: %s", error)


def _by_name(models: Seq[ModelSpec]) -> dict[tuple[str, str], ModelSpec]:
    """Return what is to be loaded for each kind and name: the same for several names of one model."""
    names = Names(models)
    return {(model.kind, model.reference): names.spec(model) for model in models}


def _kind_and_model(attempt: Attempt) -> tuple[str, str]:
    return attempt.task.submitted.kind, attempt.task.submitted.model
