"""Tasks that wait for a model to load, by a server that never comes up: told, cancelled, and not kept for ever."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskDeadLettered, TaskProgressed
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import CancelTask, Retry, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal
from tests.support.cluster import Cluster

NEVER_UP = shlex.join([sys.executable, "-c", "import signal; signal.pause()"])


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
def slow(tmp_path: Path) -> dict[str, str]:
    """The settings of a worker whose model never finishes loading."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "model.safetensors").touch()
    return {
        "BITINGLIP_WORKER_MODELS": f"org/slow={folder}",
        "BITINGLIP_WORKER_VLLM": "org/slow",
        "BITINGLIP_WORKER_VLLM_COMMAND": NEVER_UP,
    }


async def submit(inbox: Inbox) -> TaskId:
    command = SubmitTask(kind="text-generation", model="org/slow", params={"prompt": "hi"}, retry=Retry(max_attempts=1))
    return (await inbox.submit(command)).task_id


async def until(log: EventLog, task_id: TaskId, kind: str) -> Recorded:
    async with asyncio.timeout(60), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            for recorded in batch:
                if recorded.type == kind:
                    return recorded
    raise AssertionError


async def test_a_load_is_told_to_who_waits_and_a_cancel_ends_the_waiting(
    log: EventLog, inbox: Inbox, cluster: Cluster, slow: dict[str, str]
) -> None:
    await cluster.worker(**slow)
    stays, leaves = await submit(inbox), await submit(inbox)
    tick = (await until(log, leaves, "task.progressed")).event
    assert isinstance(tick, TaskProgressed)
    assert (tick.unit, tick.step, tick.total) == ("load", 0, 1)
    await inbox.cancel(leaves, CancelTask(reason="too slow"))
    assert (await until(log, leaves, "task.cancelled")).event.type == "task.cancelled"
    assert not any(is_terminal(recorded.event) for recorded in await log.read_task(stays))


async def test_a_load_that_takes_too_long_is_given_up(
    log: EventLog, inbox: Inbox, cluster: Cluster, slow: dict[str, str]
) -> None:
    await cluster.worker(BITINGLIP_WORKER_LOAD_TIMEOUT_S="1.5", **slow)
    last = (await until(log, await submit(inbox), "task.dead_lettered")).event
    assert isinstance(last, TaskDeadLettered)
    assert last.failure.kind == "engine_crashed"
    assert "was not loaded within 1.5 s" in last.failure.message
