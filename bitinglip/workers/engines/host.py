"""The engine process: `python -m bitinglip.workers.engines.host --fd N …`, started by `enginehost.py`.

Two threads beside the main one, which alone touches models: the reader turns cancels into flags at once, and the writer
sends what is ready together as one frame. When the socket closes the worker is gone, and the process ends on the spot.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel

from bitinglip.events.task import Failure, Usage
from bitinglip.workers.engine import (
    LENGTH_BYTES,
    PROTOCOL,
    BatchDone,
    Cancel,
    Job,
    JobCancelled,
    JobFailed,
    JobProgressed,
    JobSucceeded,
    Load,
    Loaded,
    LoadedModel,
    Loader,
    LoadFailed,
    Loading,
    ModelSpec,
    Placement,
    Ready,
    Run,
    ToEngine,
    Unload,
    Unloaded,
    decode_to_engine,
    encode_frame,
)
from bitinglip.workers.engines.failures import failure_of

log = logging.getLogger("bitinglip.engine")

ENGINES: dict[str, str] = {
    "echo": "bitinglip.workers.engines.echo:load",
    "text-generation": "bitinglip.workers.engines.text_generation:load",
    "embedding": "bitinglip.workers.engines.embedding:load",
}
"""Kind -> the function that loads its models; imported when it is first needed."""

PR_SET_PDEATHSIG = 1


class Channel:
    """The socket to the worker: frames in, and messages out, coalesced."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._pending: list[BaseModel] = []
        self._ready = threading.Condition()
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, message: BaseModel) -> None:
        """Send a message with all that is pending."""
        with self._ready:
            self._pending.append(message)
            self._ready.notify()

    def receive(self) -> list[ToEngine] | None:
        """Wait for the next frame; none when the worker is gone."""
        head = self._read_exactly(LENGTH_BYTES)
        body = self._read_exactly(int.from_bytes(head, "big")) if head else None
        return decode_to_engine(body) if body else None

    def _read_exactly(self, size: int) -> bytes | None:
        chunks: list[bytes] = []
        while size > 0:
            chunk = self._socket.recv(min(size, 1 << 20))
            if not chunk:
                return None
            chunks.append(chunk)
            size -= len(chunk)
        return b"".join(chunks)

    def _write(self) -> None:
        while True:
            with self._ready:
                while not self._pending:
                    self._ready.wait()
                messages, self._pending = self._pending, []
            try:
                self._socket.sendall(encode_frame(messages))
            except OSError:
                os._exit(1)


class Reporter:
    """The sink of one batch: merges ticks, and sees to it that each job is answered once."""

    def __init__(self, channel: Channel, jobs: Sequence[Job], ticks_per_s: float) -> None:
        self._channel = channel
        self._pause_s = 1.0 / ticks_per_s
        self._open = {job.task_id for job in jobs}
        self._ticks: dict[str, JobProgressed] = {}
        self._sent_at: dict[str, float] = {}
        self._started = time.perf_counter()
        self._lock = threading.Lock()

    @property
    def unanswered(self) -> list[str]:
        """Tasks that have had no final answer."""
        return sorted(self._open)

    def progress(
        self, task_id: str, step: int, total: int | None = None, unit: str = "step", text: str | None = None
    ) -> None:
        """Report a step, or keep it for the next tick."""
        with self._lock:
            if task_id not in self._open:
                return
            kept = self._ticks.get(task_id)
            if kept is not None and kept.text is not None:
                text = kept.text + (text or "")
            self._ticks[task_id] = JobProgressed(task_id=task_id, step=step, total=total, unit=unit, text=text)
            if time.perf_counter() - self._sent_at.get(task_id, -1e9) >= self._pause_s:
                self._flush(task_id)

    def succeed(self, task_id: str, result: dict[str, Any], usage: Usage) -> None:
        """Report the result."""
        run_ms = (time.perf_counter() - self._started) * 1000
        self._answer(task_id, JobSucceeded(task_id=task_id, result=result, usage=usage, run_ms=run_ms))

    def fail(self, task_id: str, failure: Failure) -> None:
        """Report a failure."""
        self._answer(task_id, JobFailed(task_id=task_id, failure=failure))

    def cancel(self, task_id: str) -> None:
        """Report that the job stopped because it was cancelled."""
        self._answer(task_id, JobCancelled(task_id=task_id))

    def _answer(self, task_id: str, message: BaseModel) -> None:
        with self._lock:
            if task_id in self._open:
                self._flush(task_id)
                self._open.discard(task_id)
                self._channel.send(message)

    def _flush(self, task_id: str) -> None:
        tick = self._ticks.pop(task_id, None)
        if tick is not None:
            self._sent_at[task_id] = time.perf_counter()
            self._channel.send(tick)


class Host:
    """The models in this process, and what is done with them; all but `read` runs in the main thread."""

    def __init__(self, channel: Channel, placement: Placement, max_loaded: int, ticks_per_s: float) -> None:
        self._channel = channel
        self._placement = placement
        self._max_loaded = max_loaded
        self._ticks_per_s = ticks_per_s
        self._models: dict[str, tuple[LoadedModel, Loaded]] = {}
        self._work: queue.SimpleQueue[tuple[ToEngine, list[Job]]] = queue.SimpleQueue()
        self._jobs: dict[str, Job] = {}

    def read(self) -> None:
        """Take messages until the worker is gone; runs in a thread of its own."""
        try:
            while (messages := self._channel.receive()) is not None:
                for message in messages:
                    self._take(message)
        except OSError as error:
            log.error("the socket to the worker broke: %s", error)  # noqa: TRY400
        os._exit(0)

    def work(self) -> None:
        """Do what was asked, one thing after the other, for ever."""
        self._channel.send(Ready(protocol=PROTOCOL, pid=os.getpid()))
        while True:
            message, jobs = self._work.get()
            match message:
                case Load(model=model):
                    self._load(model)
                case Unload(model_key=key):
                    self._unload(key)
                    self._channel.send(Unloaded(model_key=key))
                case Run():
                    self._run(message, jobs)
                case _:
                    log.error("an unexpected message: %s", message)

    def _take(self, message: ToEngine) -> None:
        jobs: list[Job] = []
        if isinstance(message, Cancel):
            job = self._jobs.get(message.task_id)
            if job is not None:
                job.cancelled.set()
            return
        if isinstance(message, Run):
            jobs = [Job(spec.task_id, spec.params) for spec in message.jobs]
            self._jobs.update({job.task_id: job for job in jobs})
        self._work.put((message, jobs))

    def _load(self, spec: ModelSpec) -> None:
        held = self._models.pop(spec.key, None)
        if held is not None:
            self._models[spec.key] = held  # the most recently used one is last
            self._channel.send(held[1])
            return
        for key in list(self._models)[: max(0, len(self._models) + 1 - self._max_loaded)]:
            self._unload(key)
        try:
            self._channel.send(self._load_new(spec))
        except Exception as error:  # noqa: BLE001  (whatever a library raises is this load's failure)
            log.exception("loading %s failed", spec.reference)
            self._channel.send(LoadFailed(model_key=spec.key, failure=failure_of(error, "load_failed")))

    def _load_new(self, spec: ModelSpec) -> Loaded:
        def progress(done: int, total: int) -> None:
            self._channel.send(Loading(model_key=spec.key, done=done, total=total))

        started, before = time.perf_counter(), resident_bytes()
        model = _loader(spec.kind)(spec, self._placement, progress)
        loaded = Loaded(
            model_key=spec.key,
            load_ms=(time.perf_counter() - started) * 1000,
            memory_bytes=max(0, resident_bytes() - before),
            device=model.device,
            dtype=model.dtype,
            versions=model.versions,
        )
        self._models[spec.key] = (model, loaded)
        return loaded

    def _unload(self, key: str) -> None:
        held = self._models.pop(key, None)
        if held is not None:
            held[0].unload()

    def _run(self, run: Run, jobs: list[Job]) -> None:
        reporter = Reporter(self._channel, jobs, self._ticks_per_s)
        try:
            self._models[run.model_key][0].run(jobs, reporter)
            failure = Failure(kind="engine_error", message="The engine left the job without an answer.", retryable=True)
        except Exception as error:  # noqa: BLE001  (whatever a library raises is this batch's failure)
            log.exception("a batch on %s failed", run.model_key)
            failure = failure_of(error, "engine_error")
        for task_id in reporter.unanswered:
            reporter.fail(task_id, failure)
        for job in jobs:
            self._jobs.pop(job.task_id, None)
        self._channel.send(BatchDone(batch=run.batch))


def resident_bytes() -> int:
    """Return this process's resident memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _loader(kind: str) -> Loader:
    module, _, name = ENGINES[kind].partition(":")
    load: Callable[..., LoadedModel] = getattr(importlib.import_module(module), name)
    return load


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """Run the process until its worker is gone."""
    parser = argparse.ArgumentParser(description="BitingLip's engine process; started by a worker.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-loaded", type=int, default=2)
    parser.add_argument("--ticks-per-s", type=float, default=20.0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the worker's business
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    channel = Channel(socket.socket(fileno=args.fd))
    host = Host(channel, Placement(args.device, args.threads), args.max_loaded, args.ticks_per_s)
    threading.Thread(target=host.read, name="reader", daemon=True).start()
    host.work()


if __name__ == "__main__":
    main()
