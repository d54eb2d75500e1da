"""A real node agent with real workers: it keeps them, hands back what a dead one held, drains, and obeys."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psutil
import pytest

from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.node import NodeHeartbeat, NodeStarted, NodeStopped, NodeWorkerExited
from bitinglip.events.streams import WORKERS
from bitinglip.events.task import TaskAssigned, TaskFailed
from bitinglip.tasks.inbox import Inbox
from tests.integration.test_worker import echo, outcome, submit, types, until
from tests.support.cluster import Cluster, Process

SOON = {"BITINGLIP_NODE_HEARTBEAT_S": "0.2", "BITINGLIP_WORKER_HEARTBEAT_S": "0.2"}
AGAIN = {"task.failed", "task.assigned"}
MOST_RELEASE_S = 15.0
"""Half of the lease in these tests: without the agent the task would wait for all of it."""


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
def last(log: EventLog) -> Callable[[Process, str], Awaitable[Any]]:
    """Return the last event of a type that a node told."""

    async def last(node: Process, kind: str) -> Any:
        recorded = await log.read_last(WORKERS, f"bl.node.{node.ready['node_id']}.{kind}")
        return recorded and recorded.event

    return last


def worker_pids(node: Process) -> list[int]:
    """Return the ids of a node's worker processes."""
    found: list[int] = []
    for child in psutil.Process(node.pid).children():
        with suppress(psutil.Error):
            found += [child.pid] if "bitinglip.workers.main" in " ".join(child.cmdline()) else []
    return found


def seconds_between(first: Recorded, second: Recorded) -> float:
    return (second.time - first.time).total_seconds()


async def test_a_killed_workers_task_runs_again_at_once(
    log: EventLog, inbox: Inbox, cluster: Cluster, last: Any, eventually: Any
) -> None:
    node = await cluster.node(workers=1)
    task_id = await submit(inbox, echo(steps=150, step_ms=20))
    await until(log, task_id, "task.progressed")
    [pid] = worker_pids(node)
    killed = log.clock()
    os.kill(pid, signal.SIGKILL)
    history = await outcome(log, task_id)
    assert [kind for kind in types(history) if kind != "progressed"] == [
        "submitted", "assigned", "failed", "assigned", "succeeded",
    ]  # fmt: skip
    failed, again = [recorded for recorded in history if recorded.time > killed and recorded.type in AGAIN]
    assert isinstance(failed.event, TaskFailed)
    assert isinstance(again.event, TaskAssigned)
    assert (failed.event.failure.kind, again.event.attempt) == ("lost_lease", 2)
    took_s = (again.time - killed).total_seconds()
    sys.stdout.write(f"worker killed → attempt 2 assigned: {took_s:.2f} s\n")
    assert took_s < MOST_RELEASE_S
    exited = await eventually(lambda: last(node, "worker_exited"))
    assert isinstance(exited, NodeWorkerExited)
    assert (exited.worker_id, exited.reason, exited.status, exited.released) == (
        again.event.worker_id, "was killed by signal 9", -9, 1,
    )  # fmt: skip


async def test_another_worker_takes_over_what_a_killed_one_held(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    node = await cluster.node(workers=2, BITINGLIP_WORKER_MAX_BATCH=8)
    ids = [await submit(inbox, echo(steps=100, step_ms=20)) for _ in range(6)]
    first = await until(log, ids[0], "task.progressed")
    victim = next(worker["pid"] for worker in node.ready["workers"] if first.source.endswith(worker["worker_id"]))
    os.kill(victim, signal.SIGKILL)
    for task_id in ids:
        history = await outcome(log, task_id)
        assert types(history)[-1] == "succeeded"
        assert seconds_between(history[0], history[-1]) < 2 * MOST_RELEASE_S


async def test_a_node_tells_of_itself_and_says_goodbye(cluster: Cluster, last: Any, eventually: Any) -> None:
    node = await cluster.node(workers=2, **SOON, BITINGLIP_NODE_LABELS="site=cellar,eu")
    started = await last(node, "started")
    assert isinstance(started, NodeStarted)
    assert (started.labels, started.pid, started.draining) == ({"site": "cellar", "eu": ""}, node.pid, False)
    beat = await eventually(lambda: last(node, "heartbeat"))
    assert isinstance(beat, NodeHeartbeat)
    assert [(worker.worker_id, worker.state) for worker in beat.workers] == [
        (f"{started.node_id}-{number}", "ready") for number in range(2)
    ]
    assert {worker.pid for worker in beat.workers} == set(worker_pids(node))
    assert beat.disk_total_bytes >= beat.disk_free_bytes > 0
    pids = worker_pids(node)
    assert await node.stop() == 0
    stopped = await last(node, "stopped")
    assert isinstance(stopped, NodeStopped)
    assert stopped.reason == "signal"
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


async def test_a_node_that_is_killed_takes_its_workers_with_it(cluster: Cluster, eventually: Any) -> None:
    node = await cluster.node(workers=2)
    pids = worker_pids(node)
    assert len(pids) == 2
    await node.kill()
    await eventually(lambda: not [pid for pid in pids if psutil.pid_exists(pid)], within_s=30)


async def test_none_of_the_workers_comes_up(cluster: Cluster, tmp_path: Any) -> None:
    env = {
        "BITINGLIP_NATS_URL": cluster.nats_url,
        "BITINGLIP_WORKER_MODELS": "no/such",
        "BITINGLIP_DATA_DIR": str(tmp_path),
    }
    node = Process("node", env | {"BITINGLIP_NODE_WORKERS": "2"}, tmp_path / "late.log")
    await node.start(wait=False)
    assert await node.wait() == 70
    assert "The model 'no/such' is not on this machine" in node.log
