"""A real node agent with real workers: it keeps them, hands back what a dead one held, drains, and obeys."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any

import orjson
import psutil
import pytest

from bitinglip.errors import CommandRefused, NodeSilent
from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import Recorded, decode
from bitinglip.events.log import EventLog
from bitinglip.events.node import NodeHeartbeat, NodeStarted, NodeStopped, NodeWorkerExited
from bitinglip.events.service import command
from bitinglip.events.streams import WORKERS
from bitinglip.events.task import TaskAssigned, TaskDeadLettered, TaskFailed
from bitinglip.events.worker import WorkerDrained
from bitinglip.gateway.openqueues import OpenQueues
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import Demand, Retry
from bitinglip.tasks.inbox import Inbox
from tests.integration.test_worker import echo, outcome, submit, types, until
from tests.support.cluster import Cluster, Process
from tests.support.server import RestartableServer

SOON = {"BITINGLIP_NODE_HEARTBEAT_S": "0.2", "BITINGLIP_WORKER_HEARTBEAT_S": "0.2"}
AGAIN = {"task.failed", "task.assigned"}
LONG_LEASE = {"BITINGLIP_WORKER_LEASE_S": "30"}
MOST_RELEASE_S = 15.0
"""Half of the lease: without the agent the task would wait for all of it."""


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
    node = await cluster.node(workers=1, **LONG_LEASE)
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
    assert (failed.event.failure.kind, again.event.attempt) == ("worker_crashed", 2)
    assert failed.event.failure.message == "The worker was killed by signal 9."
    took_s = (again.time - killed).total_seconds()
    sys.stdout.write(f"worker killed → attempt 2 assigned: {took_s:.2f} s\n")
    assert took_s < MOST_RELEASE_S
    exited = await eventually(lambda: last(node, "worker_exited"))
    assert isinstance(exited, NodeWorkerExited)
    assert (exited.worker_id, exited.reason, exited.status, exited.released) == (
        again.event.worker_id, "was killed by signal 9", -9, 1,
    )  # fmt: skip


async def test_another_worker_takes_over_what_a_killed_one_held(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    node = await cluster.node(workers=2, BITINGLIP_WORKER_MAX_BATCH=8, **LONG_LEASE)
    ids = [await submit(inbox, echo(steps=100, step_ms=20)) for _ in range(6)]
    first = await until(log, ids[0], "task.progressed")
    victim = next(worker["pid"] for worker in node.ready["workers"] if first.source.endswith(worker["worker_id"]))
    os.kill(victim, signal.SIGKILL)
    for task_id in ids:
        history = await outcome(log, task_id)
        assert types(history)[-1] == "succeeded"
        assert seconds_between(history[0], history[-1]) < 2 * MOST_RELEASE_S


async def test_a_task_whose_last_attempt_goes_with_its_worker_is_a_dead_letter(
    log: EventLog, inbox: Inbox, cluster: Cluster
) -> None:
    node = await cluster.node(workers=1, **LONG_LEASE)
    once = echo(steps=10_000, step_ms=20).model_copy(update={"retry": Retry(max_attempts=1)})
    task_id = await submit(inbox, once)
    await until(log, task_id, "task.progressed")
    [pid] = worker_pids(node)
    os.kill(pid, signal.SIGKILL)
    last = (await outcome(log, task_id))[-1].event
    assert isinstance(last, TaskDeadLettered)
    assert (last.attempt, last.failure.kind) == (1, "worker_crashed")
    assert types(await outcome(log, await submit(inbox, echo())))[-1] == "succeeded"


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


async def test_a_worker_that_dies_again_and_again_is_started_after_longer_pauses(
    cluster: Cluster, log: EventLog, eventually: Any
) -> None:
    node = await cluster.node(workers=1)
    exits: list[NodeWorkerExited] = []
    while len(exits) < 3:
        [pid] = await eventually(lambda: worker_pids(node))
        os.kill(pid, signal.SIGKILL)
        exits = await eventually(partial(all_exits, log, node, len(exits) + 1))
    assert [exit.restart_in_s for exit in exits] == [0.1, 1.0, 2.0]


async def all_exits(log: EventLog, node: Process, count: int) -> list[NodeWorkerExited] | None:
    """Return what a node told of ended workers, once it is as many."""
    subject = f"bl.node.{node.ready['node_id']}.worker_exited"
    found = [decode(raw, WORKERS).event for raw in await get_after(log.connection, WORKERS, subject, 0)]
    exits = [event for event in found if isinstance(event, NodeWorkerExited)]
    return exits if len(exits) == count else None


async def test_a_second_signal_ends_a_node_at_once(log: EventLog, inbox: Inbox, cluster: Cluster) -> None:
    node = await cluster.node(workers=1, BITINGLIP_WORKER_GRACE_S="600", **LONG_LEASE)
    task_id = await submit(inbox, echo(steps=100_000, step_ms=20))
    await until(log, task_id, "task.progressed")
    pids = worker_pids(node)
    node.signal(signal.SIGINT)
    node.signal(signal.SIGTERM)
    assert await node.wait() == 0
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    other = await cluster.node(workers=1)
    async with asyncio.timeout(MOST_RELEASE_S), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            if any(isinstance(recorded.event, TaskAssigned) and recorded.event.attempt == 2 for recorded in batch):
                break
    assert other.running


async def test_a_node_that_is_killed_takes_its_workers_with_it(cluster: Cluster, eventually: Any) -> None:
    node = await cluster.node(workers=2)
    pids = worker_pids(node)
    assert len(pids) == 2
    await node.kill()
    await eventually(lambda: not [pid for pid in pids if psutil.pid_exists(pid)], within_s=30)


async def test_a_node_outlives_the_server_and_stops_without_it(
    restartable_nats: RestartableServer, tmp_path: Any, eventually: Any
) -> None:
    cluster = Cluster(restartable_nats.url, tmp_path)
    node = await cluster.node(workers=1, BITINGLIP_NATS_APPEND_TIMEOUT_S="0.5", **SOON)
    await restartable_nats.kill()
    await restartable_nats.start()
    log = await EventLog.connect(Nats(url=restartable_nats.url), "/test")

    async def back() -> bool:
        beat = await log.read_last(WORKERS, f"bl.node.{node.ready['node_id']}.heartbeat")
        return beat is not None and beat.time > since

    since = log.clock()
    await eventually(back)
    await log.close()
    await restartable_nats.kill()
    assert await node.stop() == 0
    assert "Traceback" not in node.log


async def test_none_of_the_workers_comes_up(cluster: Cluster, tmp_path: Any) -> None:
    env = {
        "BITINGLIP_NATS_URL": cluster.nats_url,
        "BITINGLIP_WORKER_MODELS": "no/such=nowhere",
        "BITINGLIP_DATA_DIR": str(tmp_path),
    }
    node = Process("node", env | {"BITINGLIP_NODE_WORKERS": "2"}, tmp_path / "late.log")
    await node.start(wait=False)
    assert await node.wait() == 70
    assert "The model 'no/such' is not on this machine" in node.log


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tell(log: EventLog) -> Callable[..., Awaitable[dict[str, Any]]]:
    """Send a command to a node."""

    async def tell(node: Process, name: str, **body: Any) -> dict[str, Any]:
        node_id = node.ready["node_id"]
        return await command(log.connection, node_id, subjects.node_command(node_id, name), {"by": "me"} | body, 10)

    return tell


async def in_state(tell: Any, node: Process, *states: str) -> bool:
    """Tell whether the node's workers are in these states."""
    return [worker["state"] for worker in (await tell(node, "status"))["workers"]] == list(states)


async def test_a_node_is_a_nats_service(log: EventLog, cluster: Cluster) -> None:
    node = await cluster.node(workers=0)
    answer = await log.connection.client.request("$SRV.INFO.bitinglip-node", b"", timeout=5)
    info = orjson.loads(answer.data)
    assert (info["name"], info["metadata"]) == ("bitinglip-node", {"node_id": node.ready["node_id"]})
    assert {endpoint["name"]: endpoint["subject"] for endpoint in info["endpoints"]}["drain"] == (
        f"bl.control.node.{node.ready['node_id']}.drain"
    )


async def test_a_drained_worker_ends_what_runs_and_takes_nothing_new(
    log: EventLog, inbox: Inbox, cluster: Cluster, tell: Any, last: Any, eventually: Any
) -> None:
    node = await cluster.node(workers=1, **SOON, BITINGLIP_WORKER_MAX_BATCH=2)
    [worker_id] = [worker["worker_id"] for worker in node.ready["workers"]]
    running = await submit(inbox, echo(steps=60, step_ms=20))
    await until(log, running, "task.progressed")
    assert (await tell(node, "worker-drain", worker_id=worker_id))["state"] == "draining"
    waiting = await submit(inbox, echo())
    await eventually(lambda: in_state(tell, node, "drained"))
    assert types(await outcome(log, running))[-1] == "succeeded"
    assert types(await log.read_task(waiting)) == ["submitted"]
    drained = await eventually(lambda: log.read_last(WORKERS, f"bl.worker.{worker_id}.drained"))
    assert isinstance(drained.event, WorkerDrained)

    async def beats() -> bool:
        beat = await log.read_last(WORKERS, f"bl.worker.{worker_id}.heartbeat")
        return beat is not None and getattr(beat.event, "draining", None) is True

    await eventually(beats)
    assert (await last(node, "worker_commanded")).command == "drain"
    assert (await last(node, "worker_commanded")).by == "me"
    await tell(node, "worker-undrain", worker_id=worker_id)
    assert types(await outcome(log, waiting)) == ["submitted", "assigned", "succeeded"]
    assert await log.read_last(WORKERS, f"bl.worker.{worker_id}.undrained")


async def test_a_drained_node_stays_so_over_restarts(
    log: EventLog, inbox: Inbox, cluster: Cluster, tell: Any, eventually: Any
) -> None:
    node = await cluster.node(workers=2)
    assert (await tell(node, "drain"))["draining"] is True
    assert (await tell(node, "labels", labels={"site": "cellar", "eu": ""}))["labels"] == {"site": "cellar", "eu": ""}
    assert (await tell(node, "labels", labels={"eu": None}))["labels"] == {"site": "cellar"}
    await eventually(lambda: in_state(tell, node, "drained", "drained"))
    await node.stop()
    await node.start()
    status = await tell(node, "status")
    assert (status["draining"], status["labels"]) == (True, {"site": "cellar"})
    await eventually(lambda: in_state(tell, node, "drained", "drained"))
    waiting = await submit(inbox, echo())
    assert (await tell(node, "undrain"))["draining"] is False
    assert types(await outcome(log, waiting))[-1] == "succeeded"


async def test_tasks_may_require_a_nodes_labels(log: EventLog, inbox: Inbox, cluster: Cluster, tell: Any) -> None:
    """Those from its settings, those that it is given while it runs, and those that it had before a restart."""

    async def ask(label: str) -> TaskId:
        command = echo().model_copy(update={"requires": Demand.model_validate({"label": label})})
        event = await inbox.prepare(command)
        await OpenQueues(log.connection, 10, 100).ensure(event)
        return (await inbox.append(event)).task_id

    node = await cluster.node(workers=1, BITINGLIP_NODE_LABELS="site=cellar", BITINGLIP_WORKER_LABELS="fast")
    for label in ("site=cellar", "fast"):
        assert types(await outcome(log, await ask(label)))[-1] == "succeeded"
    waiting = await ask("eu")
    await tell(node, "labels", labels={"eu": "", "site": None})
    assert types(await outcome(log, waiting))[-1] == "succeeded"
    gone = await ask("site=cellar")
    await node.stop()
    await node.start()
    assert types(await outcome(log, await ask("eu")))[-1] == "succeeded"
    assert types(await log.read_task(gone)) == ["submitted"]


async def test_a_worker_is_stopped_started_and_restarted(cluster: Cluster, tell: Any, eventually: Any) -> None:
    node = await cluster.node(workers=1)
    [before] = node.ready["workers"]
    worker_id = before["worker_id"]
    await tell(node, "worker-stop", worker_id=worker_id)
    await eventually(lambda: in_state(tell, node, "stopped"))
    assert not worker_pids(node)
    await tell(node, "worker-start", worker_id=worker_id)
    await eventually(lambda: in_state(tell, node, "ready"))
    [started] = worker_pids(node)
    await tell(node, "worker-restart", worker_id=worker_id)

    async def another() -> bool:
        return await in_state(tell, node, "ready") and worker_pids(node) not in ([started], [])

    await eventually(another)
    lines = (await tell(node, "logs", worker_id=worker_id, lines=5))["lines"]
    assert 1 <= len(lines) <= 5
    assert any("stopping" in line for line in (await tell(node, "logs", worker_id=worker_id))["lines"])


async def test_models_are_loaded_and_unloaded(log: EventLog, cluster: Cluster, tell: Any) -> None:
    node = await cluster.node(workers=1)
    worker_id = node.ready["workers"][0]["worker_id"]
    await tell(node, "worker-load", worker_id=worker_id, model="echo")
    assert await log.read_last(WORKERS, f"bl.worker.{worker_id}.model_loaded")
    await tell(node, "worker-unload", worker_id=worker_id, model="echo")
    with pytest.raises(CommandRefused, match="does not serve org/other"):
        await tell(node, "worker-load", worker_id=worker_id, model="org/other")


async def test_what_cannot_be_done_is_refused_with_its_reason(cluster: Cluster, tell: Any, tmp_path: Any) -> None:
    node = await cluster.node(workers=0)
    with pytest.raises(CommandRefused, match="it runs no worker 'x'"):
        await tell(node, "worker-restart", worker_id="x")
    with pytest.raises(CommandRefused, match="a b= is no label"):
        await tell(node, "labels", labels={"a b": ""})
    node.ready["node_id"], named = "nowhere", node.ready["node_id"]
    with pytest.raises(NodeSilent, match="no agent of it is connected"):
        await tell(node, "status")
    env = {"BITINGLIP_NATS_URL": cluster.nats_url, "BITINGLIP_WORKER_NODE": named}
    second = Process("node", env | {"BITINGLIP_DATA_DIR": str(tmp_path)}, tmp_path / "second.log")
    await second.start(wait=False)
    assert await second.wait() == 2
    assert f"An agent of the node {named} already runs" in second.log


async def test_a_rolling_restart_fails_no_attempt(
    log: EventLog, inbox: Inbox, cluster: Cluster, tell: Any, eventually: Any
) -> None:
    node = await cluster.node(workers=2, BITINGLIP_WORKER_MAX_BATCH=4)
    before = set(worker_pids(node))
    ids = [await submit(inbox, echo(steps=5, step_ms=20)) for _ in range(40)]
    assert len((await tell(node, "restart-workers"))["restarting"]) == 2
    with pytest.raises(CommandRefused, match="already being restarted"):
        await tell(node, "restart-workers")
    done = False
    while not done:  # tasks flow until it is over
        ids.append(await submit(inbox, echo(steps=5, step_ms=20)))
        await outcome(log, ids[-1])
        done = not (await tell(node, "status"))["restarting"]
    assert await in_state(tell, node, "ready", "ready")
    assert not before & set(worker_pids(node))
    for task_id in ids:
        assert [kind for kind in types(await outcome(log, task_id)) if kind != "progressed"] == [
            "submitted", "assigned", "succeeded",
        ]  # fmt: skip
