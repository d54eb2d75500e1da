"""Where a running batch reports."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bitinglip.events.task import Failure, Usage
from bitinglip.workers.engine import JobAnswer, JobCancelled, JobFailed, JobSpec, JobSucceeded
from bitinglip.workers.engines.channel import Channel


class Reporter:
    """The sink of one batch: sees to it that each job is answered once."""

    def __init__(self, channel: Channel, jobs: Sequence[JobSpec]) -> None:
        self._channel = channel
        self._open = {job.task_id for job in jobs}
        self.faulty = False
        """Whether a job has met a fault of the device, which leaves the process of no more use."""
        self._started = time.perf_counter()

    @property
    def unanswered(self) -> list[str]:
        """Tasks that have had no final answer."""
        return sorted(self._open)

    def progress(
        self,
        task_id: str,
        step: int,
        total: int | None = None,
        unit: str = "step",
        text: str | None = None,
        reasoning: str | None = None,
    ) -> None:
        """Report a step, unless the job is answered."""
        if task_id in self._open:
            self._channel.progress(task_id, step, total, unit, text, reasoning)

    def preview(self, task_id: str, picture: str) -> None:
        """Keep a small picture for the next step, unless the job is answered."""
        if task_id in self._open:
            self._channel.preview(task_id, picture)

    def succeed(self, task_id: str, result: dict[str, Any], usage: Usage) -> None:
        """Report the result."""
        run_ms = (time.perf_counter() - self._started) * 1000
        self._answer(JobSucceeded(task_id=task_id, result=result, usage=usage, run_ms=run_ms))

    def fail(self, task_id: str, failure: Failure) -> None:
        """Report a failure."""
        self.faulty = self.faulty or failure.kind == "engine_crashed"
        self._answer(JobFailed(task_id=task_id, failure=failure))

    def cancel(self, task_id: str) -> None:
        """Report that the job stopped because it was cancelled."""
        self._answer(JobCancelled(task_id=task_id))

    def _answer(self, message: JobAnswer) -> None:
        if message.task_id in self._open:
            self._open.discard(message.task_id)
            self._channel.answer(message.task_id, message)
