"""`echo`: gives back what it got. No model and no torch: for tests, benchmarks and a first look."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from bitinglip.events.task import Failure, Usage
from bitinglip.tasks.parameters import EchoParameters
from bitinglip.workers.engine import Job, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError

CRASH_STATUS = 86


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> Echo:
    """Load nothing."""
    return Echo()


class Echo:
    """The loaded no-model."""

    device = "cpu"
    dtype = None
    versions: dict[str, str] = {}

    def run(self, jobs: Sequence[Job], sink: Sink) -> None:
        """Answer the jobs one after the other."""
        for job in jobs:
            _run(job, sink)

    def unload(self) -> None:
        """Drop nothing."""


def _run(job: Job, sink: Sink) -> None:
    try:
        params = EchoParameters.model_validate(job.params)
    except ValidationError as error:
        raise BadInputError(str(error)) from error
    for step in range(1, params.steps + 1):
        if job.cancelled.wait(params.step_ms / 1000) if params.step_ms else job.cancelled.is_set():
            break
        sink.progress(job.task_id, step, params.steps)
    if job.cancelled.is_set():
        sink.cancel(job.task_id)
    elif params.fail is None:
        sink.succeed(job.task_id, {"message": params.message}, Usage())
    else:
        _fail(job, params.fail, sink)


def _fail(job: Job, how: str, sink: Sink) -> None:
    if how == "crash":
        time.sleep(0.05)  # let what was said before reach the worker
        os._exit(CRASH_STATUS)
    if how == "out_of_memory":
        sink.fail(job.task_id, Failure(kind="out_of_memory", message="As asked for.", retryable=True))
    else:
        sink.fail(job.task_id, Failure(kind="bad_input", message="As asked for.", retryable=False))
