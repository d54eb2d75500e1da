"""What a worker says about an attempt: the commands that its engine's messages become."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime
from typing import Any

from bitinglip.events.task import ArtifactRef, Failure, Usage
from bitinglip.tasks.commands import AssignAttempt, FailAttempt, ProgressAttempt, StopAttempt, SucceedAttempt
from bitinglip.workers.attempt import Attempt
from bitinglip.workers.engine import JobProgressed, JobSucceeded, Loaded, ModelSpec
from bitinglip.workers.identity import Identity
from bitinglip.workers.payload import sealed_tick, untold


class Words:
    """Makes commands in the name of one worker."""

    def __init__(self, identity: Identity, clock: Callable[[], datetime]) -> None:
        self._identity = identity
        self._clock = clock

    def assignment(self, attempt: Attempt, model: ModelSpec | None, batch_size: int) -> AssignAttempt:
        """Say that the attempt begins, as one of so many."""
        return AssignAttempt(
            ready_sequence=attempt.delivery.event.sequence,
            worker_id=self._identity.worker_id,
            node_id=self._identity.node_id,
            device=self._identity.device,
            revision=model.revision if model else None,
            batch_size=batch_size,
            now=self._clock(),
        )

    def progress(self, attempt: Attempt, message: JobProgressed) -> ProgressAttempt:
        """Say how far it is."""
        private = attempt.task.submitted.private
        return ProgressAttempt(
            attempt=attempt.task.attempt,
            worker_id=self._identity.worker_id,
            step=message.step,
            total=message.total,
            unit=message.unit,
            text=None if private else message.text,
            reasoning=None if private else message.reasoning,
            left_ms=message.left_ms,
            preview=None if private else message.preview,
            sealed=sealed_tick(attempt, message) if private else None,
        )

    def success(
        self,
        attempt: Attempt,
        answer: JobSucceeded,
        used: Usage,
        loaded: Loaded,
        result: dict[str, Any] | None,
        reference: ArtifactRef | None,
        files: tuple[str, ...] = (),
    ) -> SucceedAttempt:
        """Say that it has a result, here or in an artifact, and what that took; `files`: what a private one names."""
        return SucceedAttempt(
            attempt=attempt.task.attempt,
            worker_id=self._identity.worker_id,
            result=result,
            result_ref=reference,
            usage=used,
            run_ms=round(answer.run_ms, 3),
            load_ms=round(attempt.load_ms, 3),
            device=loaded.device,
            dtype=loaded.dtype,
            versions=loaded.versions,
            files=files,
        )

    def failure(self, attempt: Attempt, failure: Failure, next_vram_gb: float | None = None) -> FailAttempt:
        """Say that it failed, and what memory the next one's device must have if this one's was too small."""
        return FailAttempt(
            attempt=attempt.task.attempt,
            worker_id=self._identity.worker_id,
            failure=untold(failure) if attempt.task.submitted.private else failure,
            run_ms=round(attempt.run_ms, 3),
            now=self._clock(),
            jitter=random.random(),  # noqa: S311
            next_vram_gb=next_vram_gb,
        )

    def stopped(self, attempt: Attempt) -> FailAttempt | StopAttempt:
        """Say that it stopped before its end: its time was up, or its task was cancelled."""
        if attempt.timed_out:
            limit = attempt.task.submitted.timeout_ms
            return self.failure(attempt, Failure(kind="timed_out", message=f"Ran over {limit} ms.", retryable=True))
        return StopAttempt(attempt=attempt.task.attempt, worker_id=self._identity.worker_id)
