"""The projection of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from bitinglip.events.node import (
    NodeDrained,
    NodeHeartbeat,
    NodeLabelled,
    NodeRestartingWorkers,
    NodeStarted,
    NodeStopped,
    NodeUndrained,
    NodeWorkerCommanded,
    NodeWorkerExited,
)
from bitinglip.events.registry import Event
from bitinglip.projections import queries
from bitinglip.projections.rows import NodeRow, reader
from bitinglip.projections.writer import write
from tests.unit.projection_support import fresh_database, message

HISTORY: list[tuple[type[Event], dict[str, Any]]] = [
    (NodeStarted, {}),
    (NodeHeartbeat, {}),
    (NodeWorkerExited, {}),
    (NodeDrained, {}),
    (NodeHeartbeat, {"draining": True, "cpu_percent": 1.0, "devices": []}),
    (NodeWorkerExited, {"reason": "ended with status 4"}),
    (NodeLabelled, {"labels": {}}),
    (NodeUndrained, {}),
    (NodeStopped, {}),
    (NodeStarted, {"pid": 99, "labels": {"new": ""}, "draining": True}),
    (NodeWorkerExited, {"reason": "again"}),
    (NodeHeartbeat, {"draining": True}),
]


def _nodes(history: list[tuple[type[Event], dict[str, Any]]], size: int) -> list[NodeRow]:
    messages = [
        message(cls.model_validate(cls.example | changes), number, about="rig-1")
        for number, (cls, changes) in enumerate(history, 1)
    ]
    with fresh_database() as database:
        for start in range(0, len(messages), size):
            write(database, "WORKERS", messages[start : start + size])
        return [reader(NodeRow)(row) for row in database.rows(queries.text("nodes"))]


@pytest.mark.parametrize("end", range(1, len(HISTORY) + 1))
def test_nodes_do_not_depend_on_the_cutting(end: int) -> None:
    whole = _nodes(HISTORY[:end], 100)
    assert _nodes(HISTORY[:end], 1) == whole
    assert _nodes(HISTORY[:end], 2) == whole


def test_a_heartbeat_tells_of_the_machine() -> None:
    [row] = _nodes(HISTORY[:2], 2)
    assert (row.state, row.labels, row.cpus, row.cpu_percent) == ("online", {"site": "cellar"}, 2, 7.5)
    assert (row.memory_total_bytes, row.disk_free_bytes, row.rss_bytes) == (8_589_934_592, 51_000_000_000, 48_000_000)
    assert [(device["device"], device["temperature_c"]) for device in row.devices] == [("cuda:0", 64.0)]
    assert [(worker["worker_id"], worker["state"]) for worker in row.workers] == [("rig-1-0", "ready")]


def test_commands_and_exits_show_at_once() -> None:
    [drained] = _nodes(HISTORY[:4], 1)
    assert (drained.state, drained.draining, drained.worker_exits) == ("draining", True, 1)
    [row] = _nodes(HISTORY[:8], 1)
    assert (row.state, row.labels, row.worker_exits, row.devices) == ("online", {}, 2, [])
    assert row.worker_exit_reason == "ended with status 4"
    [stopped] = _nodes(HISTORY[:9], 1)
    assert (stopped.state, stopped.stopped_at) == ("offline", stopped.seen_at)


def test_a_start_begins_anew() -> None:
    [row] = _nodes(HISTORY[:10], 1)
    assert (row.state, row.pid, row.labels, row.worker_exits, row.workers, row.stopped_at) == (
        "draining", 99, {"new": ""}, 0, [], None,
    )  # fmt: skip


RESTARTS: list[tuple[type[Event], dict[str, Any]]] = [
    (NodeStarted, {}),
    (NodeWorkerExited, {"status": -9}),
    (NodeWorkerExited, {"status": 4}),
    (NodeWorkerExited, {"status": -9}),
    (NodeWorkerExited, {"status": 1, "restart_in_s": None}),
    (NodeWorkerCommanded, {"command": "restart"}),
    (NodeWorkerCommanded, {"command": "drain"}),
    (NodeRestartingWorkers, {"workers": ["rig-1-0", "rig-1-1", "rig-1-2"]}),
    (NodeRestartingWorkers, {"workers": []}),
    (NodeStarted, {}),
    (NodeWorkerExited, {"status": 4}),
]


@pytest.mark.parametrize("size", [1, 2, 3, len(RESTARTS)])
def test_restarts_are_counted_by_node_and_reason_over_its_starts(size: int) -> None:
    history = [(cls, changes, node) for node in ("rig-1", "rig-2") for cls, changes in RESTARTS]
    messages = [
        message(cls.model_validate(cls.example | changes | {"node_id": node}), number, about=node)
        for number, (cls, changes, node) in enumerate(history, 1)
    ]
    with fresh_database() as database:
        for start in range(0, len(messages), size):
            write(database, "WORKERS", messages[start : start + size])
        rows = database.rows(queries.text("worker_restarts"))
    expected = [("command", 1), ("rolling", 3), ("signal_9", 2), ("status_4", 2)]
    assert rows == [(node, *row) for node in ("rig-1", "rig-2") for row in expected]
