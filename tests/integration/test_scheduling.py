"""Two real workers that serve two models: each model has one loader, and work goes to where its model is."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.streams import WORKERS
from bitinglip.events.task import TaskAssigned
from bitinglip.events.worker import WorkerHeartbeat, WorkerModelLoaded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal
from tests.support.cluster import Cluster

Eventually = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]
STANDIN = shlex.join([sys.executable, "-m", "tests.support.standin_vllm", "serve"])


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
def two_models(tmp_path: Path) -> dict[str, str]:
    """The settings of a worker that serves `org/a` and `org/b`, each by a stand-in for vLLM's server."""
    folders: list[str] = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        (folder / "model.safetensors").touch()
        folders.append(f"org/{name}={folder}")
    return {
        "BITINGLIP_WORKER_MODELS": ",".join(folders),
        "BITINGLIP_WORKER_VLLM": "org/a,org/b",
        "BITINGLIP_WORKER_VLLM_COMMAND": STANDIN,
        "BITINGLIP_WORKER_HEARTBEAT_S": "1",
        "BITINGLIP_WORKER_MAX_LOADED": "1",
    }


async def run_one(log: EventLog, inbox: Inbox, name: str) -> str:
    """Run a task on a model; returns the worker that had it."""
    command = SubmitTask(kind="text-generation", model=f"org/{name}", params={"prompt": "hi"})
    task_id: TaskId = (await inbox.submit(command)).task_id
    async with asyncio.timeout(90), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            if any(is_terminal(recorded.event) for recorded in batch):
                break
    history = await log.read_task(task_id)
    assert history[-1].type == "task.succeeded", history[-1]
    return next(recorded.event.worker_id for recorded in history if isinstance(recorded.event, TaskAssigned))


async def loads(log: EventLog, workers: list[str]) -> dict[str, str]:
    """Return the last model that each worker has loaded."""
    found: dict[str, str] = {}
    for worker in workers:
        last = await log.read_last(WORKERS, f"bl.worker.{worker}.model_loaded")
        if last is not None and isinstance(last.event, WorkerModelLoaded):
            found[worker] = last.event.reference
    return found


async def test_each_model_has_one_loader_and_work_goes_to_where_its_model_is(
    log: EventLog, inbox: Inbox, cluster: Cluster, two_models: dict[str, str], eventually: Eventually
) -> None:
    workers = [(await cluster.worker(**two_models)).ready["worker_id"] for _ in range(2)]

    async def all_told() -> bool:
        beats = [await log.read_last(WORKERS, f"bl.worker.{worker}.heartbeat") for worker in workers]
        return all(beat is not None for beat in beats)

    await eventually(all_told)
    first = await run_one(log, inbox, "a")
    assert await loads(log, workers) == {first: "org/a"}

    async def told() -> bool:
        beat = await log.read_last(WORKERS, f"bl.worker.{first}.heartbeat")
        return beat is not None and isinstance(beat.event, WorkerHeartbeat) and beat.event.loaded == ["org/a"]

    await eventually(told)
    second = await run_one(log, inbox, "b")
    assert second != first
    for _ in range(5):
        assert await asyncio.gather(run_one(log, inbox, "a"), run_one(log, inbox, "b")) == [first, second]
    assert await loads(log, workers) == {first: "org/a", second: "org/b"}
    last = await log.last_sequence(WORKERS)
    loaded = 0
    async with asyncio.timeout(30), aclosing(log.tail(WORKERS, 0)) as batches:
        async for batch in batches:
            loaded += sum(message.subject.endswith(".model_loaded") for message in batch)
            if batch[len(batch) - 1].sequence >= last:
                break
    assert loaded == 2


async def test_a_pinned_model_is_loaded_by_an_idle_worker_without_any_task(
    log: EventLog, cluster: Cluster, two_models: dict[str, str], eventually: Eventually
) -> None:
    worker = (await cluster.worker(**two_models, BITINGLIP_WORKER_PINNED="org/b")).ready["worker_id"]

    async def told() -> bool:
        beat = await log.read_last(WORKERS, f"bl.worker.{worker}.heartbeat")
        return beat is not None and isinstance(beat.event, WorkerHeartbeat) and beat.event.loaded == ["org/b"]

    await eventually(told)
    assert await loads(log, [worker]) == {worker: "org/b"}
