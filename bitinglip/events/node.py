"""Facts about nodes: one machine each, told by its agent."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bitinglip.events.registry import Event, event
from bitinglip.events.worker import DeviceReading

WorkerState = Literal["starting", "ready", "draining", "drained", "stopping", "stopped", "waiting"]
WorkerCommand = Literal["start", "stop", "restart", "drain", "undrain", "load", "unload"]


class NodeEvent(Event):
    """Base of the facts about one node."""

    node_id: str


class NodeDevice(DeviceReading):
    """A device of the node, and what it says of itself."""

    device: str
    """What workers call it, as `cuda:0`."""
    lost: str | None = None
    """Why nothing is read of it."""


class NodeWorker(BaseModel):
    """A worker process of the node, as its agent sees it."""

    model_config = ConfigDict(frozen=True, extra="allow")

    worker_id: str
    device: str
    state: WorkerState
    """`waiting`: it ended by itself, and is started again after a pause."""
    pid: int | None = None
    held: int = 0
    """Work messages in its hands."""
    exits: int = 0
    """Times that it ended by itself since the agent's start."""


@event
class NodeStarted(NodeEvent):
    """A node's agent is up; its workers follow."""

    type = "node.started"
    example = {
        "node_id": "rig-1",
        "pid": 4700,
        "release": "0.1.0",
        "system": "Linux 6.18",
        "cpus": 2,
        "memory_total_bytes": 8_589_934_592,
        "labels": {"site": "cellar"},
        "draining": False,
        "devices": [
            {"device": "cuda:0", "name": "NVIDIA GeForce RTX 3070", "memory_total_bytes": 8_589_934_592},
        ],
    }

    pid: int
    release: str
    """Version of BitingLip."""
    system: str
    cpus: int
    memory_total_bytes: int
    labels: dict[str, str]
    draining: bool
    devices: list[NodeDevice]


@event
class NodeHeartbeat(NodeEvent):
    """A sign of life, and how the machine is; it leaves the log after its time to live."""

    type = "node.heartbeat"
    lasting = False
    example = {
        "node_id": "rig-1",
        "cpu_percent": 7.5,
        "memory_used_bytes": 2_147_483_648,
        "disk_free_bytes": 51_000_000_000,
        "disk_total_bytes": 120_000_000_000,
        "rss_bytes": 48_000_000,
        "draining": False,
        "devices": [{"device": "cuda:0", "name": "NVIDIA GeForce RTX 3070", "temperature_c": 64.0, "power_w": 181.5}],
        "workers": [{"worker_id": "rig-1-0", "device": "cuda:0", "state": "ready", "pid": 4711, "held": 1}],
    }

    cpu_percent: float
    """Of all cores together, since the last heartbeat."""
    memory_used_bytes: int
    disk_free_bytes: int
    """Where `data_dir` is."""
    disk_total_bytes: int
    rss_bytes: int
    """Resident memory of the agent itself."""
    draining: bool
    devices: list[NodeDevice]
    workers: list[NodeWorker]


@event
class NodeWorkerExited(NodeEvent):
    """A worker process ended by itself; what it held is handed back at once."""

    type = "node.worker_exited"
    example = {
        "node_id": "rig-1",
        "worker_id": "rig-1-0",
        "reason": "was killed by signal 9",
        "status": -9,
        "told": ["12:00:01 WARNING bitinglip.worker: 1 running tasks are handed back"],
        "released": 1,
        "restart_in_s": 1.0,
    }

    worker_id: str
    reason: str
    """How it ended, in words."""
    status: int
    """Exit status; the negative number of the signal that killed it."""
    told: list[str]
    """The last lines of its log."""
    released: int
    """Work messages that its agent handed back for it."""
    restart_in_s: float | None
    """When it is started again; none: it is not."""


@event
class NodeStopped(NodeEvent):
    """A node's agent ended on purpose, its workers before it."""

    type = "node.stopped"
    example = {"node_id": "rig-1", "reason": "signal"}

    reason: Literal["signal", "error"]


class NodeCommanded(NodeEvent):
    """Base of what somebody had a node do."""

    by: str | None
    """Name of the key that asked for it; none on a gateway without keys."""


@event
class NodeLabelled(NodeCommanded):
    """The node has other labels."""

    type = "node.labelled"
    example = {"node_id": "rig-1", "by": "gateway", "labels": {"site": "cellar", "eu": ""}}

    labels: dict[str, str]
    """All of them."""


@event
class NodeDrained(NodeCommanded):
    """The node's workers are to take nothing new, also those that start later."""

    type = "node.drained"
    example = {"node_id": "rig-1", "by": "gateway"}


@event
class NodeUndrained(NodeCommanded):
    """The node's workers take work again."""

    type = "node.undrained"
    example = {"node_id": "rig-1", "by": "gateway"}


@event
class NodeRestartingWorkers(NodeCommanded):
    """The node's workers are drained and started anew, one after the other."""

    type = "node.restarting_workers"
    example = {"node_id": "rig-1", "by": "gateway", "workers": ["rig-1-0", "rig-1-1"]}

    workers: list[str]


@event
class NodeWorkerCommanded(NodeCommanded):
    """Somebody had one worker do something."""

    type = "node.worker_commanded"
    example = {"node_id": "rig-1", "by": "gateway", "worker_id": "rig-1-0", "command": "restart", "model": None}

    worker_id: str
    command: WorkerCommand
    model: str | None = None
    """What is loaded or unloaded."""
