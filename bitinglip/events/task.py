"""Facts about tasks: from `task.submitted` to one of the terminal events."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from bitinglip.events.registry import Event, event
from bitinglip.ids import TaskId

Lane = Literal["interactive", "normal", "batch"]
LANES: tuple[Lane, ...] = ("interactive", "normal", "batch")

FailureKind = Literal[
    "bad_input",
    "out_of_memory",
    "load_failed",
    "engine_crashed",
    "engine_error",
    "timed_out",
    "lost_lease",
    "worker_crashed",
    "worker_stopped",
]
OnFailure = Literal["cancel", "run"]
Attempt = Annotated[int, Field(ge=1)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class ArtifactRef(_Value):
    """Bytes in the object store, by their digest."""

    sha256: str
    size_bytes: int
    media_type: str
    encrypted: Literal["aes-256-gcm"] | None = None
    """How the bytes are encrypted, of which this is the digest and size; none: they are not."""


class Failure(_Value):
    """Why an attempt failed: a value, so that the retry rule is a pure function of it."""

    kind: FailureKind
    message: str
    retryable: bool
    device_bytes: int | None = None
    """Memory of the device that was too small (`out_of_memory`); none if it is not known, and for other failures."""


class Usage(_Value):
    """What a task consumed."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    """Images that were drawn."""
    audio_in_ms: int = 0
    """Milliseconds of sound that were listened to."""
    audio_out_ms: int = 0
    """Milliseconds of sound that were made."""
    energy_j: float | None = None
    """Its share of what the device drew while it ran, in joules; none if the device does not tell its power."""


class RetryPolicy(_Value):
    """How often, and how soon, a failed attempt is followed by another."""

    max_attempts: int = Field(default=3, ge=1, le=100, description="Attempts in all, the first one included.")
    base_ms: int = Field(
        default=1_000, ge=0, le=3_600_000, description="Wait before the second attempt, in milliseconds."
    )
    max_ms: int = Field(
        default=60_000, ge=0, le=86_400_000, description="Longest wait between two attempts, in milliseconds."
    )
    not_on: tuple[FailureKind, ...] = Field(
        default=(), max_length=16, description="Kinds of failures that end the task at once, as `timed_out`."
    )


class Requires(_Value):
    """What the worker that runs a task must have."""

    vram_gb: float = Field(default=0.0, ge=0, le=100_000, description="Memory of its device, in GiB, taken or not.")
    labels: tuple[str, ...] = Field(default=(), max_length=16, description="Labels that it has, all of them.")


class TaskEvent(Event):
    """Base of the facts about one task."""

    task_id: TaskId


@event
class TaskSubmitted(TaskEvent):
    """A task was accepted; from here on it is never lost."""

    type = "task.submitted"
    example = {
        "task_id": "01JZ0000000000000000000000",
        "kind": "text-generation",
        "model": "openai-community/gpt2",
        "lane": "normal",
        "params": {"prompt": "Once"},
        "request_sha256": "0" * 64,
    }

    kind: str
    model: str
    lane: Lane
    params: dict[str, Any] | None = None
    """The parameters; none when they are in an artifact."""
    params_ref: ArtifactRef | None = None
    request_sha256: str
    """Digest of the request, by which a repeat with the same idempotency key is told from another request."""
    idempotency_key: str | None = None
    key_id: str | None = None
    """API key that asked for it; none on a gateway without keys."""
    metadata: dict[str, str] = {}
    retry: RetryPolicy = RetryPolicy.model_construct()
    requires: Requires | None = None
    """What the worker must have; none: any that serves the model will do."""
    run_at: datetime | None = None
    expires_at: datetime | None = None
    timeout_ms: int | None = None
    """Longest that an attempt may run, in milliseconds."""
    retry_of: TaskId | None = None
    """The task that ended without a result, and is asked for again by this one."""
    depends_on: tuple[TaskId, ...] | None = None
    """Tasks whose end it waits for; none if it waits for no other."""
    on_failure: OnFailure | None = None
    """What becomes of it if one of them does not succeed; none with no `depends_on`."""
    batch_id: str | None = None
    """The batch that it was asked for with; none for most."""
    alias: str | None = None
    """What the caller named, where that stood for `model`: an alias, or a branch; none for most."""
    private: bool = False
    """Whether parameters, results and what is told meanwhile are encrypted: `params_ref` is there, whatever their size,
    and `request_sha256` is a digest that only the task's key leads to."""


@event
class TaskQueued(TaskEvent):
    """A task that waited is ready to run: its time has come, the tasks before it have ended, or it is tried again.

    `stranded`: it was ready already, but its work message was lost sight of, and this one takes its place.
    `bigger_card`: it is tried again, on a device with more memory than the one that was too small for it.
    """

    type = "task.queued"
    example = {"task_id": "01JZ0000000000000000000000", "attempt": 2, "reason": "retry"}

    attempt: Attempt
    """Number that the coming attempt will have."""
    reason: Literal["scheduled", "retry", "released", "stranded", "bigger_card"]
    params: dict[str, Any] | None = None
    """The parameters with the results of other tasks in their places; none if they are those of `task.submitted`."""
    params_ref: ArtifactRef | None = None
    """The same as an artifact, if they are large."""


@event
class TaskAssigned(TaskEvent):
    """A worker took the lease of an attempt."""

    type = "task.assigned"
    example = {
        "task_id": "01JZ0000000000000000000000",
        "attempt": 1,
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "device": "cuda:0",
        "revision": None,
        "wait_ms": 12,
        "batch_size": 1,
    }

    attempt: Attempt
    worker_id: str
    node_id: str
    device: str
    revision: str | None
    """Revision of the model that this attempt runs on; none for a model without one."""
    wait_ms: int
    """Milliseconds from being ready to run to the assignment."""
    batch_size: int
    """Tasks that run together in this batch."""


@event
class TaskProgressed(TaskEvent):
    """A tick: step k of n, and what was added to the answer's text; it leaves the log after its time to live."""

    type = "task.progressed"
    lasting = False
    example = {
        "task_id": "01JZ0000000000000000000000",
        "attempt": 1,
        "step": 7,
        "total": 64,
        "unit": "token",
        "text": " a",
    }

    attempt: Attempt
    step: int
    total: int | None = None
    unit: str = "step"
    text: str | None = None
    reasoning: str | None = None
    """What was added to the thoughts of a model that thinks before it answers."""
    left_ms: int | None = None
    """Milliseconds that may be left, by the pace so far; none while there is no pace, or no total."""
    preview: str | None = None
    """A small picture of what is being drawn, as a data: URL."""
    sealed: str | None = None
    """`text`, `reasoning` and `preview` of a private task, encrypted, in Base64; they are none then."""


@event
class TaskSucceeded(TaskEvent):
    """Terminal: the task has its result."""

    type = "task.succeeded"
    example = {
        "task_id": "01JZ0000000000000000000000",
        "attempt": 1,
        "worker_id": "rig-1-0",
        "result": {"text": "upon a time", "finish_reason": "stop"},
        "run_ms": 41.5,
    }

    attempt: Attempt
    worker_id: str
    result: dict[str, Any] | None = None
    """The result; none when it is in an artifact."""
    result_ref: ArtifactRef | None = None
    usage: Usage = Usage.model_construct()
    run_ms: float
    """Milliseconds on the device."""
    load_ms: float = 0.0
    """Milliseconds that this attempt waited for its model to load."""
    device: str | None = None
    """Device that it ran on, as the engine says (`task.assigned` may say `auto`)."""
    dtype: str | None = None
    """Precision of the weights, as `bfloat16`."""
    versions: dict[str, str] = {}
    files: tuple[str, ...] = ()
    """Digests of the artifacts that a private task's result names, which the log does not show."""


@event
class TaskFailed(TaskEvent):
    """An attempt failed. With `retry_at` another one follows; without, the failure is the task's end (terminal)."""

    type = "task.failed"
    example = {
        "task_id": "01JZ0000000000000000000000",
        "attempt": 1,
        "worker_id": "rig-1-0",
        "failure": {"kind": "engine_crashed", "message": "killed by signal 9", "retryable": True},
        "retry_at": "2026-01-01T00:00:01Z",
    }

    attempt: Attempt
    worker_id: str
    failure: Failure
    retry_at: datetime | None = None
    next_vram_gb: float | None = None
    """GiB that the device of the next attempts must have, since this one was too small; none: no more than before."""
    run_ms: float = 0.0


@event
class TaskCancelRequested(TaskEvent):
    """Somebody asked for a running task to stop; its worker answers by `task.cancelled`, or by its result if faster."""

    type = "task.cancel_requested"
    example = {"task_id": "01JZ0000000000000000000000", "by": None, "reason": "changed my mind"}

    by: str | None = None
    """API key of the one who asked."""
    reason: str | None = None


@event
class TaskCancelled(TaskEvent):
    """Terminal: the task was stopped, or taken out of its queue."""

    type = "task.cancelled"
    example = {"task_id": "01JZ0000000000000000000000", "attempt": None, "by": None, "reason": None}

    attempt: Attempt | None = None
    """The attempt that was stopped; none if none ran."""
    by: str | None = None
    reason: str | None = None


@event
class TaskExpired(TaskEvent):
    """Terminal: the task was not started before its `expires_at`."""

    type = "task.expired"
    example = {"task_id": "01JZ0000000000000000000000", "expires_at": "2026-01-01T00:00:00Z"}

    expires_at: datetime


@event
class TaskDeadLettered(TaskEvent):
    """Terminal: the last allowed attempt failed; kept for a person to look at."""

    type = "task.dead_lettered"
    example = {
        "task_id": "01JZ0000000000000000000000",
        "attempt": 3,
        "worker_id": "rig-1-0",
        "failure": {"kind": "engine_crashed", "message": "killed by signal 9", "retryable": True},
    }

    attempt: Attempt
    worker_id: str
    failure: Failure
    run_ms: float = 0.0


@event
class TaskForgotten(TaskEvent):
    """The key of a private task, which has ended, was destroyed: what it was asked and answered can be read no more."""

    type = "task.forgotten"
    example = {"task_id": "01JZ0000000000000000000000", "by": "gateway"}

    by: str | None = None
    """API key of the one who asked for it."""
