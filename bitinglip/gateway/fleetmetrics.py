"""Metrics of the machines: what the read model has of nodes, workers and devices, as of one scrape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from bitinglip.projections.rows import NodeRow, WorkerRow

DEVICE_READINGS = {
    "device_memory_total_bytes": "Memory of a worker's device.",
    "device_memory_used_bytes": "Memory of a worker's device that all processes together take.",
    "device_utilisation_percent": "How busy a worker's device is.",
    "device_temperature_c": "Temperature of a worker's device in degrees Celsius.",
    "device_power_w": "Power that a worker's device draws, in watts.",
}
"""Columns of `workers` that are told as metrics, and what each means."""

NODE_STATES = ("online", "draining", "stopped", "gone")
"""`stopped` said goodbye, `gone` went silent; `GET /v1/nodes` calls both offline."""
WORKER_STATES = ("starting", "ready", "draining", "drained", "stopping", "stopped", "waiting", "gone")
"""Those of a node's agent, and `gone`: silent, and of no node that lives."""

Restarts = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What the read model has of the machines."""

    nodes: list[NodeRow]
    workers: list[WorkerRow]
    restarts: Restarts
    """How often workers were started again, by node and reason."""
    nodes_since: datetime
    """A node that has said nothing since then is gone."""
    workers_since: datetime
    """The same for a worker."""

    def node_states(self) -> dict[str, str]:
        """Return the state of each node by its name."""
        return {node.node_id: _node_state(node, self.nodes_since) for node in self.nodes}

    def worker_states(self) -> dict[str, str]:
        """Return the state of each worker by its name: what the agent of a node that lives says comes first."""
        states = {worker.worker_id: _worker_state(worker, self.workers_since) for worker in self.workers}
        told = [worker for node in self.living_nodes() for worker in node.workers]
        return states | {worker["worker_id"]: worker["state"] for worker in told}

    def living_nodes(self) -> list[NodeRow]:
        """Return the nodes whose agents live."""
        return [node for node in self.nodes if _lives(_node_state(node, self.nodes_since))]

    def telling_workers(self) -> list[WorkerRow]:
        """Return the workers whose last heartbeat still counts."""
        return [row for row in self.workers if row.state == "started" and row.seen_at >= self.workers_since]


class FleetMetrics:
    """The instruments; they tell nothing until a fleet was told, and nothing again after `forget`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._nodes = Gauge("bitinglip_nodes", "Nodes by state.", ("state",), registry=registry)
        self._workers = Gauge("bitinglip_workers", "Workers by state.", ("state",), registry=registry)
        self._info = Gauge(
            "bitinglip_node_info", "1 for each node whose agent lives.", ("node_id", "release"), registry=registry
        )
        self._models = Gauge(
            "bitinglip_worker_models_loaded",
            "Models in a worker's memory.",
            ("worker_id", "node_id"),
            registry=registry,
        )
        self._devices = {
            column: Gauge(f"bitinglip_{column}", meaning, ("worker_id", "node_id"), registry=registry)
            for column, meaning in DEVICE_READINGS.items()
        }
        self._restarts = CountedElsewhere(
            "bitinglip_worker_restarts",
            "Times that a node's agent started workers again.",
            ("node_id", "reason"),
        )
        registry.register(self._restarts)

    def forget(self) -> None:
        """Tell nothing."""
        for gauge in (self._nodes, self._workers, self._info, self._models, *self._devices.values()):
            gauge.clear()
        self._restarts.told = {}

    def tell(self, fleet: Fleet) -> None:
        """Tell this, and nothing of what was told before."""
        self.forget()
        _count(self._nodes, NODE_STATES, fleet.node_states().values())
        _count(self._workers, WORKER_STATES, fleet.worker_states().values())
        for node in fleet.living_nodes():
            self._info.labels(node.node_id, node.release or "").set(1)
        for worker in fleet.telling_workers():
            self._tell_worker(worker)
        self._restarts.told = fleet.restarts

    def _tell_worker(self, worker: WorkerRow) -> None:
        labels = (worker.worker_id, worker.node_id or "")
        self._models.labels(*labels).set(len(worker.loaded))
        for column, gauge in self._devices.items():
            value = getattr(worker, column)
            if value is not None:
                gauge.labels(*labels).set(value)


class CountedElsewhere(Collector):
    """A counter that somebody else counts."""

    def __init__(self, name: str, meaning: str, labels: tuple[str, ...]) -> None:
        self.told: Mapping[tuple[str, ...], int] = {}
        self._name = name
        self._meaning = meaning
        self._labels = labels

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Tell what was told last."""
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, count in self.told.items():
            family.add_metric(labels, count)
        return [family]


def _count(gauge: Gauge, names: tuple[str, ...], found: Iterable[str]) -> None:
    """Tell of all names, also those that nobody has: an alert wants a 0."""
    counts = Counter(found)
    for name in names:
        gauge.labels(name).set(counts[name])


def _node_state(node: NodeRow, since: datetime) -> str:
    if node.stopped_at is not None:
        return "stopped"
    return node.state if node.seen_at >= since else "gone"


def _worker_state(worker: WorkerRow, since: datetime) -> str:
    if worker.state == "stopped":
        return "stopped"
    if worker.seen_at < since:
        return "gone"
    return "drained" if worker.drained else "ready"


def _lives(state: str) -> bool:
    return state in {"online", "draining"}
