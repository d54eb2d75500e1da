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


class DeviceReading(BaseModel):
    """What a device has and does, as its driver tells it; what that does not tell is none."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    """Taken by all processes together."""
    utilisation_percent: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None


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
    lasting = False
    example = {
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "running": 1,
        "done": 117,
        "failed": 2,
        "loaded": ["openai-community/gpt2"],
        "rss_bytes": 61_000_000,
        "device": {
            "name": "NVIDIA GeForce RTX 3070",
            "memory_total_bytes": 8_589_934_592,
            "memory_used_bytes": 3_221_225_472,
            "utilisation_percent": 87.0,
            "temperature_c": 64.0,
            "power_w": 181.5,
        },
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
    device: DeviceReading | None = None
    """The worker's device, the first one if it has several."""
    draining: bool | None = None
    """Whether it takes nothing new; none: nobody asked it to."""
    loading: str | None = None
    """Reference of the model that is being loaded."""
    labels: list[str] = []
    """What tasks may require, as `worker.labels` says."""
    pinned: list[str] = []
    """References of the models that stay in memory."""
    taken_bytes: dict[str, int] = {}
    """Memory that each loaded model takes, running."""
    budget_bytes: int | None = None
    """Memory that models may take together; none: not known."""
    max_loaded: int | None = None
    """Most models in memory at a time."""


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
class WorkerDeviceLost(WorkerEvent):
    """A device of the worker vanished or answers no more; the worker hands back what runs, and ends."""

    type = "worker.device_lost"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1", "device": "cuda:0", "reason": "GPU is lost"}

    device: str
    reason: str


@event
class WorkerModelsChanged(WorkerEvent):
    """The worker serves other models than before: some were stored on its machine, or are there no more."""

    type = "worker.models_changed"
    example = {
        "worker_id": "rig-1-0",
        "node_id": "rig-1",
        "models": [
            {"kind": "echo", "reference": "echo"},
            {
                "kind": "text-generation",
                "reference": "openai-community/gpt2",
                "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
            },
        ],
    }

    models: list[ServedModel]
    """All of them."""


@event
class WorkerDrained(WorkerEvent):
    """What ran has ended, what was pulled is handed back, and the worker takes nothing new."""

    type = "worker.drained"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1"}


@event
class WorkerUndrained(WorkerEvent):
    """The worker takes work again."""

    type = "worker.undrained"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1"}


@event
class WorkerStopped(WorkerEvent):
    """A worker ended on purpose; one that crashed says nothing."""

    type = "worker.stopped"
    example = {"worker_id": "rig-1-0", "node_id": "rig-1", "reason": "signal"}

    reason: Literal["signal", "error"]
