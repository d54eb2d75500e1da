"""The engine process: `python -m bitinglip.workers.engines.host --fd N …`, started by `enginehost.py`.

Two threads beside the main one, which touches models, alone or with lanes of its own: the reader turns cancels into
flags at once, and the writer sends what is ready together as one frame. When the socket closes the worker is gone, and
the process ends on the spot.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import os
import shlex
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bitinglip.events.task import Failure
from bitinglip.processes import spare_the_heap
from bitinglip.tasks.parameters import PARAMETERS
from bitinglip.workers.engine import (
    PROTOCOL,
    BatchDone,
    Cancel,
    Job,
    JobSpec,
    JoiningModel,
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
    Unload,
    Unloaded,
)
from bitinglip.workers.engines.channel import Channel
from bitinglip.workers.engines.failures import BadInputError, LoadError, UnusableModelError, load_failure, run_failure
from bitinglip.workers.engines.reporter import Reporter
from bitinglip.workers.engines.ticks import Ticks

log = logging.getLogger("bitinglip.engine")

ENGINES: dict[str, str] = {
    "echo": "bitinglip.workers.engines.echo:load",
    "embedding": "bitinglip.workers.engines.embedding:load",
    "image-to-text": "bitinglip.workers.engines.image_to_text:load",
    "speech-to-text": "bitinglip.workers.engines.speech_to_text:load",
    "text-generation": "bitinglip.workers.engines.text_generation:load",
    "text-to-image": "bitinglip.workers.engines.text_to_image:load",
    "text-to-speech": "bitinglip.workers.engines.text_to_speech:load",
}
"""Kind -> the function that loads its models; imported when it is first needed."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
"""What the libraries read from the environment: an engine has no business on the network."""

VLLM = "bitinglip.workers.engines.vllm:load"
"""What loads a model of any kind that a vLLM server is to run."""
NO_ANSWER = Failure(kind="engine_error", message="The engine left the job without an answer.", retryable=True)
FAULT_STATUS = 87
"""How the process ends after a fault of the device, which no later call would survive."""
PR_SET_PDEATHSIG = 1
SWITCH_S = 0.001
"""Longest that a model's Python code keeps the reader and the writer waiting."""


class Flags:
    """The cancel flag of every job in the process, queued ones too; set by the reader, looked at by the main thread."""

    def __init__(self) -> None:
        self._flags: dict[str, threading.Event] = {}

    def raise_for(self, run: Run) -> None:
        """Make a flag, not yet set, for each job of a batch."""
        self._flags.update({job.task_id: threading.Event() for job in run.jobs})

    def set(self, task_id: str) -> None:
        """Set a job's flag; a job that is not there is fine."""
        flag = self._flags.get(task_id)
        if flag is not None:
            flag.set()

    def take(self, task_id: str) -> threading.Event:
        """Return a job's flag."""
        return self._flags[task_id]

    def drop(self, run: Run, flags: Sequence[threading.Event]) -> None:
        """Forget a batch's flags, but not those that a later batch has put in their place."""
        for job, flag in zip(run.jobs, flags, strict=True):
            if self._flags.get(job.task_id) is flag:
                del self._flags[job.task_id]


class Models:
    """The models in memory, the least recently used one first, and how those that were dropped can come back."""

    def __init__(self, channel: Channel, placement: Placement, most: int) -> None:
        self._channel = channel
        self._placement = placement
        self._most = most
        self._held: dict[str, tuple[LoadedModel, Loaded]] = {}
        self._specs: dict[str, ModelSpec] = {}

    def load(self, spec: ModelSpec) -> Loaded | LoadFailed:
        """Have a model in memory, and others dropped for it if need be."""
        try:
            return self._get(spec)[1]
        except Exception as error:  # noqa: BLE001  (whatever a library raises is this load's failure)
            traceback.print_exc()
            return LoadFailed(model_key=spec.key, failure=load_failure(error))

    def unload(self, key: str) -> None:
        """Drop a model for good; one that is not there is fine."""
        self._specs.pop(key, None)
        if key not in self._held:
            self._channel.send(Unloaded(model_key=key))
        self._drop(key)

    def use(self, key: str) -> tuple[str, LoadedModel]:
        """Return a model's kind and the model; one that made room for another is loaded again."""
        spec = self._specs.get(key)
        if spec is None:
            raise LookupError(f"the model {key} was never loaded")
        return spec.kind, self._get(spec)[0]

    def _get(self, spec: ModelSpec) -> tuple[LoadedModel, Loaded]:
        held = self._held.pop(spec.key, None) or self._load(spec)
        self._held[spec.key] = held  # the most recently used one is last
        self._specs[spec.key] = spec
        return held

    def _load(self, spec: ModelSpec) -> tuple[LoadedModel, Loaded]:
        if folders := spec.folders:
            from bitinglip.workers.engines.readahead import read_ahead

            read_ahead(folders)
        load = _loader(spec)
        if not self._held:  # what is there now are the libraries: each look through them takes 110 ms
            spare_the_heap()
        need = self._make_room(spec)
        started, before = time.perf_counter(), self._allocated()
        model = load(spec, self._placement, lambda done, total: self._loading(spec, done, total))
        load_ms = (time.perf_counter() - started) * 1000
        loaded = Loaded(
            model_key=spec.key,
            load_ms=load_ms,
            memory_bytes=max(model.memory_bytes, self._allocated() - before),
            need_bytes=need,
            device=model.device,
            dtype=model.dtype,
            versions=model.versions,
        )
        return model, loaded

    def _make_room(self, spec: ModelSpec) -> int:
        """Drop models, the least recently used one first, until there is a place and memory for another one.

        Returns about how many bytes it needs; 0 if that is not known.

        Raises:
            LoadError: it would not fit even alone.
        """
        need, budget = self._need_and_budget(spec)
        if need > budget and self._placement.offload == "none":
            raise LoadError(
                f"{spec.reference}: it needs about {need / 2**30:.1f} GiB, and models may take "
                f"{budget / 2**30:.1f} GiB here: use a smaller model or precision (`worker.dtype`, `worker.quantize`), "
                "more devices (`worker.device`), or `worker.offload`; or raise `worker.memory_gb`."
            )
        for key in list(self._held):
            taken = sum(loaded.memory_bytes or loaded.need_bytes for _, loaded in self._held.values())
            if len(self._held) < self._most and (need == 0 or taken + need <= budget):
                break
            self._drop(key)
        return need

    def _need_and_budget(self, spec: ModelSpec) -> tuple[int, int]:
        if spec.path is None:
            return 0, 0  # nothing is loaded here, and torch need not be
        from bitinglip.workers.engines.budget import budget_bytes, need_bytes

        return need_bytes(spec, self._placement), budget_bytes(self._placement)

    def _allocated(self) -> int:
        """Return how much of the device's memory is taken; 0 while nothing has asked for torch."""
        if "torch" not in sys.modules:
            return 0
        from bitinglip.workers.engines.torch_device import allocated_bytes, places

        return allocated_bytes(places(self._placement))

    def _loading(self, spec: ModelSpec, done: int, total: int) -> None:
        self._channel.send(Loading(model_key=spec.key, done=done, total=total))

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            held[0].unload()
            self._channel.send(Unloaded(model_key=key))


@dataclass(frozen=True)
class _Batch:
    """A run on its way: where its jobs are answered, and their flags."""

    run: Run
    reporter: Reporter
    flags: list[threading.Event]


class Host:
    """What the process does: `read` in a thread of its own, `work` in the main one."""

    def __init__(self, channel: Channel, models: Models, scratch: Path) -> None:
        self._channel = channel
        self._models = models
        self._scratch = scratch
        self._flags = Flags()
        self._work: deque[Load | Unload | Run] = deque()
        self._more = threading.Semaphore(0)
        self._faulty = False
        self._heard: Callable[[], None] = _nobody

    def read(self) -> None:
        """Take messages until the worker is gone; then the process ends."""
        try:
            while (messages := self._channel.receive()) is not None:
                for message in messages:
                    if isinstance(message, Cancel):
                        self._flags.set(message.task_id)
                        continue
                    if isinstance(message, Run):
                        self._flags.raise_for(message)
                    self._work.append(message)
                    self._more.release()
                self._heard()
        except BaseException:  # noqa: BLE001  (a process that cannot hear is of no use: its worker makes another one)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    def work(self) -> None:
        """Do what was asked, one thing after the other, for ever."""
        self._channel.send(Ready(protocol=PROTOCOL, pid=os.getpid()))
        while True:
            self._more.acquire()
            match self._work.popleft():
                case Load(model=spec):
                    self._channel.send(self._models.load(spec))
                case Unload(model_key=key):
                    self._models.unload(key)
                case Run() as run:
                    self._run(run)

    def next_for(self, model_key: str) -> Run | None:
        """Take the next run out of the queue if it is for this model and need not be alone; none otherwise."""
        if not self._work:
            return None
        message = self._work[0]
        if not isinstance(message, Run) or message.model_key != model_key or any(map(_alone, message.jobs)):
            return None
        self._more.acquire()
        self._work.popleft()
        return message

    @contextmanager
    def telling(self, heard: Callable[[], None]) -> Iterator[None]:
        """Have somebody called, by the reader, for what comes within the context."""
        self._heard = heard
        try:
            yield
        finally:
            self._heard = _nobody

    def begin(self, run: Run) -> _Batch:
        """Prepare for the answers to a run."""
        return _Batch(run, Reporter(self._channel, run.jobs), [self._flags.take(spec.task_id) for spec in run.jobs])

    def runnable(self, kind: str, batch: _Batch) -> list[Job[Any]]:
        """Return the jobs of a run that can be run; the others are answered."""
        return _runnable(kind, batch.run.jobs, batch.flags, batch.reporter, self._scratch)

    def end(self, batch: _Batch, failure: Failure) -> None:
        """Answer what is unanswered in a run, and say that it is done."""
        for task_id in batch.reporter.unanswered:
            batch.reporter.fail(task_id, failure)
        self._faulty = self._faulty or batch.reporter.faulty
        self._flags.drop(batch.run, batch.flags)
        self._channel.send(BatchDone(batch=batch.run.batch))

    def _run(self, run: Run) -> None:
        batch = self.begin(run)
        intake = _Intake(self, run.model_key)
        failure = NO_ANSWER
        try:
            kind, model = self._models.use(run.model_key)
            intake.kind = kind
            _run_on(model, self.runnable(kind, batch), batch.reporter, intake)
        except Exception as error:  # noqa: BLE001  (whatever a library raises is this batch's failure)
            if not isinstance(error, BadInputError):
                traceback.print_exc()
            failure = run_failure(error)
        self.end(batch, failure)
        intake.close(failure)
        if self._faulty:
            self._channel.flush()
            os._exit(FAULT_STATUS)


class _Intake:
    """Gives a running batch the runs that have come for its model; ends each as soon as its jobs are answered."""

    def __init__(self, host: Host, model_key: str) -> None:
        self._host = host
        self._model_key = model_key
        self._joined: list[_Batch] = []
        self.kind = ""

    def take(self) -> list[tuple[list[Job[Any]], Reporter]]:
        """Return the jobs that have come since the last call."""
        for batch in [batch for batch in self._joined if not batch.reporter.unanswered]:
            self._joined.remove(batch)
            self._host.end(batch, NO_ANSWER)
        taken: list[tuple[list[Job[Any]], Reporter]] = []
        while (run := self._host.next_for(self._model_key)) is not None:
            batch = self._host.begin(run)
            self._joined.append(batch)
            taken.append((self._host.runnable(self.kind, batch), batch.reporter))
        return taken

    def tell(self, heard: Callable[[], None]) -> AbstractContextManager[None]:
        """Have somebody called, by the reader, for what comes within the context."""
        return self._host.telling(heard)

    def close(self, failure: Failure) -> None:
        """End the runs that have joined."""
        for batch in self._joined:
            self._host.end(batch, failure)


def _run_on(model: LoadedModel, jobs: list[Job[Any]], reporter: Reporter, intake: _Intake) -> None:
    """Run jobs on a model: each that must be alone by itself, and the others together."""
    for job in jobs:
        if job.params.deterministic:
            model.run([job], reporter)
    together = [job for job in jobs if not job.params.deterministic]
    if not together:
        return
    if isinstance(model, JoiningModel):
        model.run_joining(together, reporter, intake)
    else:
        model.run(together, reporter)


def _nobody() -> None:
    """What nobody waits for is in the queue all the same."""


def _alone(spec: JobSpec) -> bool:
    return spec.params.get("deterministic") is True


def _runnable(
    kind: str, specs: Sequence[JobSpec], flags: Sequence[threading.Event], reporter: Reporter, scratch: Path
) -> list[Job[Any]]:
    """Return the jobs that can be run; those that were cancelled, or have unsound parameters, are answered here."""
    jobs: list[Job[Any]] = []
    for spec, flag in zip(specs, flags, strict=True):
        if flag.is_set():
            reporter.cancel(spec.task_id)
            continue
        try:
            params = PARAMETERS[kind].model_validate(spec.params)
            jobs.append(Job(spec.task_id, params, flag, spec.files, scratch))
        except ValidationError as error:
            reporter.fail(spec.task_id, run_failure(error))
    return jobs


def _loader(spec: ModelSpec) -> Loader:
    entry = VLLM if spec.vllm else ENGINES.get(spec.kind)
    if entry is None:
        raise UnusableModelError(f"There is no engine for {spec.kind!r}.")
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def _live_with_the_worker() -> None:
    """Die when the worker does, even if it cannot say goodbye; leave Ctrl-C in a terminal to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # ends the process at once, also in the midst of a kernel


def main() -> None:
    """Run the process until its worker is gone."""
    parser = argparse.ArgumentParser(description="BitingLip's engine process; started by a worker.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the worker")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--max-loaded", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--memory-bytes", type=int, default=0, help="what models may take of the device")
    parser.add_argument("--offload", choices=["none", "memory", "disk"], default="none")
    parser.add_argument("--vllm-command", default="")
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help="folder for the files of results")
    parser.add_argument("--linear", choices=["auto", "onednn", "torch"], default="auto")
    parser.add_argument("--ticks-per-s", type=float, default=20.0)
    parser.add_argument("--ticks-total-per-s", type=float, default=320.0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    _live_with_the_worker()
    sys.setswitchinterval(SWITCH_S)
    os.environ.update(OFFLINE)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # else cuda:0 may be another card than nvidia-smi's 0
    os.set_inheritable(args.fd, False)  # a grandchild must not hold the socket open
    channel = Channel(socket.socket(fileno=args.fd), Ticks(args.ticks_per_s, args.ticks_total_per_s))
    scratch = Path(args.scratch)
    command = tuple(shlex.split(args.vllm_command))
    kept = scratch.with_suffix(".kept")
    placement = Placement(
        args.device, args.threads, args.dtype, args.memory_bytes, args.offload, command, kept, args.linear
    )
    host = Host(channel, Models(channel, placement, args.max_loaded), scratch)
    threading.Thread(target=host.read, name="reader", daemon=True).start()
    host.work()


if __name__ == "__main__":
    main()
