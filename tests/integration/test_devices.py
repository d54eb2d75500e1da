"""A real worker whose card, told by a stand-in for NVIDIA's driver, is read at each heartbeat, and vanishes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.streams import WORKERS
from bitinglip.events.task import TaskFailed, TaskSucceeded
from bitinglip.events.worker import DeviceReading, WorkerDeviceLost, WorkerHeartbeat, WorkerStopped
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold
from tests.integration.test_worker import echo, outcome, submit, types, until
from tests.support.cluster import Cluster, Process
from tests.support.nvml import Rig

GPU_IS_LOST = 15
LOST_STATUS = 4
CARD = {"BITINGLIP_WORKER_DEVICE": "cuda:0", "BITINGLIP_WORKER_HEARTBEAT_S": "0.2"}
SELDOM = CARD | {"BITINGLIP_WORKER_HEARTBEAT_S": "600"}
MOST_RSS_BYTES = 80_000_000


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "nvml.json", 2)


@pytest.fixture
def last(log: EventLog) -> Callable[[Process, str], Awaitable[Any]]:
    """Return the last event of a type that a worker told."""

    async def last(worker: Process, kind: str) -> Any:
        recorded = await log.read_last(WORKERS, f"bl.worker.{worker.ready['worker_id']}.{kind}")
        return recorded and recorded.event

    return last


async def test_a_heartbeat_tells_what_the_card_does(cluster: Cluster, rig: Rig, last: Any, eventually: Any) -> None:
    worker = await cluster.worker(**CARD, **rig.env)
    beat = await eventually(lambda: last(worker, "heartbeat"))
    assert isinstance(beat, WorkerHeartbeat)
    assert beat.device == DeviceReading(
        name="NVIDIA GeForce RTX 3070 #0",
        memory_total_bytes=8_589_934_592,
        memory_used_bytes=3_221_225_472,
        utilisation_percent=87,
        temperature_c=64,
        power_w=181.5,
    )
    rig.tell(0, temperature=71)

    async def warmer() -> bool:
        return (await last(worker, "heartbeat")).device.temperature_c == 71

    await eventually(warmer)
    assert psutil.Process(worker.pid).memory_info().rss < MOST_RSS_BYTES


async def test_a_worker_on_the_cpu_tells_of_the_machine(cluster: Cluster, last: Any, eventually: Any) -> None:
    worker = await cluster.worker(BITINGLIP_WORKER_DEVICE="cpu")
    beat = await eventually(lambda: last(worker, "heartbeat"))
    assert (beat.device.name, beat.device.memory_total_bytes) == ("cpu", psutil.virtual_memory().total)


async def test_a_task_tells_what_its_card_drew(log: EventLog, inbox: Inbox, cluster: Cluster, rig: Rig) -> None:
    worker = await cluster.worker(**CARD, **rig.env)
    ended = (await outcome(log, await submit(inbox, echo(steps=5, step_ms=20))))[-1].event
    assert isinstance(ended, TaskSucceeded)
    assert ended.usage.energy_j is not None
    assert ended.usage.energy_j >= 0.1 * 181.5
    await worker.stop()
    await cluster.worker(BITINGLIP_WORKER_DEVICE="cpu")
    unknown = (await outcome(log, await submit(inbox, echo())))[-1].event
    assert isinstance(unknown, TaskSucceeded)
    assert unknown.usage.energy_j is None


async def test_a_vanished_card_ends_its_worker_and_another_one_takes_over(
    log: EventLog, inbox: Inbox, cluster: Cluster, rig: Rig, last: Any
) -> None:
    worker = await cluster.worker(**CARD, **rig.env)
    task_id = await submit(inbox, echo(steps=150, step_ms=20))
    await until(log, task_id, "task.progressed")
    rig.tell(0, error=GPU_IS_LOST)
    assert await worker.wait() == LOST_STATUS
    lost, stopped = await last(worker, "device_lost"), await last(worker, "stopped")
    assert isinstance(lost, WorkerDeviceLost)
    assert (lost.device, lost.reason, lost.node_id) == ("cuda:0", "GPU is lost", "test")
    assert isinstance(stopped, WorkerStopped)
    assert stopped.reason == "error"
    assert "remedy: Look at the card" in worker.log
    failed = (await log.read_task(task_id))[-1].event
    assert isinstance(failed, TaskFailed)
    assert failed.failure.kind == "worker_stopped"
    await cluster.worker(BITINGLIP_WORKER_DEVICE="cpu")
    history = await outcome(log, task_id)
    assert types(history)[-1] == "succeeded"
    task = fold(history)
    assert task is not None
    assert (task.attempt, task.failures) == (2, 0)


async def test_a_failed_attempt_has_the_card_looked_at_at_once(
    inbox: Inbox, cluster: Cluster, rig: Rig, last: Any, eventually: Any
) -> None:
    worker = await cluster.worker(**SELDOM, **rig.env)
    await eventually(lambda: last(worker, "heartbeat"))
    rig.tell(0, error=GPU_IS_LOST)
    await submit(inbox, echo(fail="crash"))
    assert await worker.wait() == LOST_STATUS
    assert await last(worker, "device_lost")


async def test_any_of_several_cards_may_vanish(cluster: Cluster, rig: Rig, last: Any, eventually: Any) -> None:
    worker = await cluster.worker(**CARD | {"BITINGLIP_WORKER_DEVICE": "cuda:0,cuda:1"}, **rig.env)
    await eventually(lambda: last(worker, "heartbeat"))
    rig.tell(1, error=GPU_IS_LOST)
    assert await worker.wait() == LOST_STATUS
    assert (await last(worker, "device_lost")).device == "cuda:1"


@pytest.mark.slow
async def test_a_driver_that_does_not_answer_hangs_no_worker(
    log: EventLog, inbox: Inbox, cluster: Cluster, rig: Rig, last: Any
) -> None:
    worker = await cluster.worker(**CARD, **rig.env)
    task_id = await submit(inbox, echo(steps=10_000, step_ms=20))
    await until(log, task_id, "task.progressed")
    rig.tell(0, silent=True)
    assert await worker.wait() == LOST_STATUS
    assert (await last(worker, "device_lost")).reason == "it does not answer within 10 s"


async def test_a_worker_is_not_started_on_a_lost_card(
    log: EventLog, cluster: Cluster, rig: Rig, tmp_path: Path
) -> None:
    rig.tell(0, error=GPU_IS_LOST)
    env = {"BITINGLIP_NATS_URL": cluster.nats_url, "BITINGLIP_WORKER_MODELS": "echo", "BITINGLIP_WORKER_ID": "late"}
    process = Process("worker", env | CARD | rig.env, tmp_path / "late.log")
    await process.start(wait=False)
    assert await process.wait() == LOST_STATUS
    assert "error: The device cuda:0 is lost: GPU is lost." in process.log
    assert await log.read_last(WORKERS, "bl.worker.late.started") is None


async def test_an_engine_process_that_cannot_be_killed_is_left_behind() -> None:
    command = [sys.executable, "-m", "tests.support.unkillable"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, told = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, told.decode()
    ended = json.loads(out)
    assert (ended["alive"], ended["problem"]) == (False, "it cannot be killed")
    assert 1 <= ended["took_s"] < 5
