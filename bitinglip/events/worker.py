"""Facts about workers (one card's process) and nodes (one machine)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bitinglip.events.registry import Event, event


class WorkerEvent(Event):
    """Base of the facts about one worker."""

    worker_id: str
    node_id: str


class ServedModel(BaseModel):
    """A model that a worker can run."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str
    reference: str
    revision: str | None = None


@event
class WorkerStarted(WorkerEvent):
    """A worker is up and pulls."""

    type = "worker.started"
    example = {
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "pid": 4711,
        "device": "cuda:0",
        "release": "0.1.0",
        "models": [{"kind": "echo", "reference": "echo"}],
    }

    pid: int
    device: str
    release: str
    """Version of BitingLip."""
    models: list[ServedModel]


@event
class WorkerHeartbeat(WorkerEvent):
    """A sign of life, and what the worker is doing; it leaves the log after its time to live."""

    type = "worker.heartbeat"
    example = {
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "running": 1,
        "done": 117,
        "failed": 2,
        "loaded": ["openai-community/gpt2"],
        "rss_bytes": 61_000_000,
    }

    running: int
    """Attempts that run now."""
    done: int
    """Attempts that ended well since the start."""
    failed: int
    """Attempts that failed since the start."""
    loaded: list[str]
    """References of the models in memory."""
    rss_bytes: int
    """Resident memory of the worker process, without its engine process."""


@event
class WorkerModelLoaded(WorkerEvent):
    """A model is in the worker's memory, and what it takes there."""

    type = "worker.model_loaded"
    example = {
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "kind": "text-generation",
        "reference": "openai-community/gpt2",
        "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "device": "cuda:0",
        "dtype": "float16",
        "need_bytes": 412_000_000,
        "memory_bytes": 261_000_000,
        "load_ms": 2310.5,
    }

    kind: str
    reference: str
    revision: str | None
    device: str
    dtype: str | None = None
    """Precision of the weights."""
    need_bytes: int
    """Memory that was expected of it, running; 0 if that could not be told."""
    memory_bytes: int
    """Memory that it takes after the load, measured."""
    load_ms: float


@event
class WorkerEngineExited(WorkerEvent):
    """The worker's engine process ended by itself; the worker starts another one."""

    type = "worker.engine_exited"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1", "reason": "killed by signal 9"}

    reason: str


@event
class WorkerStopped(WorkerEvent):
    """A worker ended on purpose; one that crashed says nothing."""

    type = "worker.stopped"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1", "reason": "signal"}

    reason: Literal["signal", "error"]
