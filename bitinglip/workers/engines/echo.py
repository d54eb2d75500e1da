"""`echo`: gives back what it got. No model and no torch: for tests, benchmarks and a first look."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

from bitinglip.events.task import Failure, Usage
from bitinglip.tasks.parameters import EchoParameters
from bitinglip.workers.engine import Job, LoadedModel, ModelSpec, Placement, Sink

CRASH_STATUS = 86
LONGEST_WAIT_S = 0.05
"""How soon a cancelled job is noticed while its neighbours idle."""


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load nothing."""
    progress(1, 1)
    return Echo(placement.memory_bytes)


class Echo:
    """The loaded no-model: the steps of a batch's jobs run side by side."""

    device = "cpu"
    dtype: str | None = None
    versions: dict[str, str] = {}
    memory_bytes = 0

    def __init__(self, budget_bytes: int) -> None:
        """`budget_bytes`: what models may take of the device; 0: nobody has said."""
        self._budget_bytes = budget_bytes

    def run(self, jobs: Sequence[Job[EchoParameters]], sink: Sink) -> None:
        """Idle through each job's steps, and give back its message."""
        started = time.monotonic()
        idling = [_Idling(job, started) for job in jobs if self._has_room(job, sink)]
        while idling := [each for each in idling if not each.advance(sink)]:
            pause_s = min(each.due for each in idling) - time.monotonic()
            idling[0].job.cancelled.wait(min(LONGEST_WAIT_S, max(0.0, pause_s)))

    def _has_room(self, job: Job[EchoParameters], sink: Sink) -> bool:
        needs_gb = job.params.needs_gb
        if needs_gb is None or not self._budget_bytes or needs_gb * 2**30 <= self._budget_bytes:
            return True
        full = Failure(kind="out_of_memory", message=f"It acts as if it needed {needs_gb:g} GiB.", retryable=True)
        sink.fail(job.task_id, full)
        return False

    def unload(self) -> None:
        """Drop nothing."""


class _Idling:
    """A job on its way through its steps."""

    def __init__(self, job: Job[EchoParameters], started: float) -> None:
        self.job = job
        self._step = 0
        self._step_s = job.params.step_ms / 1000
        self.due = started + self._step_s

    def advance(self, sink: Sink) -> bool:
        """Take a step if it is time; tells whether the job is answered."""
        job, steps = self.job, self.job.params.steps
        if self._step < steps and not job.cancelled.is_set() and self.due <= time.monotonic():
            self._step += 1
            self.due += self._step_s
            sink.progress(job.task_id, self._step, steps)
        if job.cancelled.is_set():
            sink.cancel(job.task_id)
        elif self._step == steps:
            _end(job, sink)
        return job.cancelled.is_set() or self._step == steps


def _end(job: Job[EchoParameters], sink: Sink) -> None:
    match job.params.fail:
        case None:
            sink.succeed(job.task_id, {"message": job.params.message}, Usage())
        case "crash":
            sys.stderr.write("echo: crashes, as it was asked to\n")
            sys.stderr.flush()
            os._exit(CRASH_STATUS)
        case "device_fault":
            raise RuntimeError("CUDA error: it was asked to act as a card that has failed")
        case kind:
            retryable = kind != "bad_input"
            sink.fail(job.task_id, Failure(kind=kind, message="It was asked to fail.", retryable=retryable))
