"""A real worker whose models come, go and change while it runs: told by its tether, as its node agent does it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from bitinglip.errors import ChildFailed
from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import decode
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery, WorkQueue
from bitinglip.events.streams import MODELS, WORKERS, Route
from bitinglip.events.subjects import encode_queue
from bitinglip.events.task import TaskAssigned, TaskSucceeded
from bitinglip.events.worker import WorkerHeartbeat, WorkerModelLoaded, WorkerModelsChanged
from bitinglip.ids import TaskId
from bitinglip.settings import Settings
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal
from bitinglip.workers.agent import Agent
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.identity import Identity
from bitinglip.workers.logfile import LogFile
from bitinglip.workers.workerchild import WorkerChild
from tests.integration.test_worker import echo, outcome, submit, until
from tests.support.models import model_folder
from tests.support.server import eventually

Start = Callable[..., Awaitable[WorkerChild]]
GPT2 = "openai-community/gpt2"
OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory, "published-gpt2")


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
async def start(nats_url: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a worker `w` of the node `n`, which serves all that it finds."""
    children: list[WorkerChild] = []

    async def start(**settings: str) -> WorkerChild:
        env = {
            **os.environ,
            "BITINGLIP_NATS_URL": nats_url,
            "BITINGLIP_DATA_DIR": str(tmp_path / "data"),
            "BITINGLIP_MODELS_HUB_CACHE": str(tmp_path / "hub"),
            "BITINGLIP_WORKER_ID": "w",
            "BITINGLIP_WORKER_NODE": "n",
            "BITINGLIP_WORKER_HEARTBEAT_S": "0.2",
        }
        log_file = LogFile(tmp_path / "worker.log", 1 << 20)
        child = WorkerChild("w", env | settings, log_file, lambda _: None)
        children.append(child)
        await child.start()
        return child

    yield start
    for child in children:
        if child.pid is not None:
            child.kill()
            await child.wait()


def put(folder: Path, model: Path) -> Path:
    """Put a model where a worker finds it, all at once."""
    beside = folder.with_name(f".{folder.name}")
    shutil.copytree(model, beside)
    return beside.rename(folder)


def snapshot(cache: Path, name: str, commit: str, model: Path) -> None:
    """Put a snapshot into a hub's cache, and make it the main one."""
    repo = cache / f"models--{name.replace('/', '--')}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "snapshots").mkdir(exist_ok=True)
    put(repo / "snapshots" / commit, model)
    (repo / "refs" / "main").write_text(commit)


def text(model: str, **params: Any) -> SubmitTask:
    prompt = {"prompt": "The first", "max_tokens": 4}
    return SubmitTask.model_validate({"kind": "text-generation", "model": model, "params": prompt | params})


async def served(log: EventLog, eventually: Any, *references: str) -> None:
    """Wait until the worker says that it serves these."""

    async def said() -> bool:
        last = await log.read_last(WORKERS, subjects.worker_subject("w", "models_changed"))
        if last is None:
            return False
        assert isinstance(last.event, WorkerModelsChanged)
        return {model.reference for model in last.event.models} == set(references)

    await eventually(said)


async def in_memory(log: EventLog) -> list[str]:
    last = await log.read_last(WORKERS, subjects.worker_subject("w", "heartbeat"))
    assert last is not None
    assert isinstance(last.event, WorkerHeartbeat)
    return last.event.loaded


async def test_a_model_that_comes_is_served_and_one_that_goes_no_more(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path, eventually: Any
) -> None:
    child = await start()
    folder = tmp_path / "data" / "models" / "lab" / "gpt2"
    folder.parent.mkdir(parents=True)
    put(folder, gpt2)
    child.tell("models")
    await served(log, eventually, "echo", "lab/gpt2")
    assert await log.read_last(MODELS, subjects.model_subject("lab/gpt2", "registered")) is not None
    for command in (text("lab/gpt2"), echo(), text("lab/gpt2")):
        assert isinstance((await outcome(log, await submit(inbox, command)))[-1].event, TaskSucceeded)

    async def held() -> bool:
        return await in_memory(log) == ["echo", "lab/gpt2"]

    await eventually(held)
    shutil.rmtree(folder)
    child.tell("models")
    await served(log, eventually, "echo")

    async def dropped() -> bool:
        return await in_memory(log) == ["echo"]

    await eventually(dropped)
    left = await submit(inbox, text("lab/gpt2"))
    assert isinstance((await outcome(log, await submit(inbox, echo())))[-1].event, TaskSucceeded)
    assert [recorded.type for recorded in await log.read_task(left)] == ["task.submitted"]
    put(folder, gpt2)
    child.tell("models")
    assert isinstance((await outcome(log, left))[-1].event, TaskSucceeded)


async def test_what_waits_for_a_model_that_goes_stays_in_its_queue(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path, eventually: Any
) -> None:
    folder = tmp_path / "data" / "models" / "gpt2"
    folder.parent.mkdir(parents=True)
    put(folder, gpt2)
    child = await start(BITINGLIP_WORKER_MAX_BATCH="1")
    assert isinstance((await outcome(log, await submit(inbox, text("gpt2"))))[-1].event, TaskSucceeded)
    long = await submit(inbox, echo(steps=40, step_ms=20))
    await until(log, long, "task.progressed")
    waits = await submit(inbox, text("gpt2"))
    shutil.rmtree(folder)
    child.tell("models")
    await served(log, eventually, "echo")
    assert isinstance((await outcome(log, long))[-1].event, TaskSucceeded)
    assert isinstance((await outcome(log, await submit(inbox, echo())))[-1].event, TaskSucceeded)
    assert [recorded.type for recorded in await log.read_task(waits)] == ["task.submitted"]
    assert (await log.queue_depths())[Route("normal", "gpt2").consumer] == 1


async def test_what_runs_ends_with_the_old_revision_and_the_next_task_has_the_new_one(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path, eventually: Any
) -> None:
    snapshot(tmp_path / "hub", GPT2, OLD, gpt2)
    child = await start(BITINGLIP_WORKER_MODELS=GPT2)
    first = await submit(inbox, text(GPT2, max_tokens=200))
    await until(log, first, "task.progressed")
    snapshot(tmp_path / "hub", GPT2, NEW, gpt2)
    child.tell("models")
    await served(log, eventually, GPT2)
    second = await submit(inbox, text(GPT2))
    assert [await revision(log, task_id) for task_id in (first, second)] == [OLD, NEW]

    async def one() -> bool:
        return await in_memory(log) == [GPT2]

    await eventually(one)


async def loads(log: EventLog) -> list[tuple[str, str | None]]:
    """Return what the worker has loaded, one after the other."""
    messages = await get_after(log.connection, WORKERS, subjects.worker_subject("w", "model_loaded"), 0)
    events = [decode(message, WORKERS).event for message in messages]
    return [(event.reference, event.revision) for event in events if isinstance(event, WorkerModelLoaded)]


async def test_weights_that_were_brought_again_are_loaded_again(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path, eventually: Any
) -> None:
    """As after a repair: what is in memory was read from the damaged file."""
    snapshot(tmp_path / "hub", GPT2, OLD, gpt2)
    child = await start(BITINGLIP_WORKER_MODELS=GPT2)
    assert await revision(log, await submit(inbox, text(GPT2))) == OLD
    first = await submit(inbox, text(GPT2, max_tokens=200))
    await until(log, first, "task.progressed")
    weights = tmp_path / "hub" / f"models--{GPT2.replace('/', '--')}" / "snapshots" / OLD / "model.safetensors"
    beside = weights.with_name("beside")
    shutil.copyfile(weights, beside)
    beside.replace(weights)
    child.tell("models")
    assert isinstance((await outcome(log, first))[-1].event, TaskSucceeded)

    async def again() -> bool:
        return await revision(log, await submit(inbox, text(GPT2))) == OLD and len(await loads(log)) == 2

    await eventually(again)
    child.tell("models")
    assert await revision(log, await submit(inbox, text(GPT2))) == OLD
    assert await loads(log) == [(GPT2, OLD)] * 2


@pytest.mark.parametrize("others", ["", "echo,"], ids=["alone", "beside others"])
async def test_a_model_of_two_names_is_loaded_once(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path, eventually: Any, others: str
) -> None:
    pinned = f"{GPT2}@{OLD}"
    snapshot(tmp_path / "hub", GPT2, OLD, gpt2)
    child = await start(BITINGLIP_WORKER_MODELS=f"{others}{pinned},{GPT2}", BITINGLIP_WORKER_MAX_LOADED="1")
    for name in (GPT2, pinned, GPT2, pinned):
        assert await revision(log, await submit(inbox, text(name))) == OLD
    assert await loads(log) == [(GPT2, OLD)]
    both = [await submit(inbox, text(name)) for name in (pinned, GPT2) * 4]
    assert {await revision(log, task_id) for task_id in both} == {OLD}
    assert await loads(log) == [(GPT2, OLD)]

    async def one() -> bool:
        return await in_memory(log) == [GPT2]

    await eventually(one)
    snapshot(tmp_path / "hub", GPT2, NEW, gpt2)  # from now on they are two
    waits = await submit(inbox, text(pinned))
    child.tell("models")

    async def moved() -> bool:
        return await revision(log, await submit(inbox, text(GPT2))) == NEW

    await eventually(moved)
    assert [await revision(log, task_id) for task_id in (waits, await submit(inbox, text(pinned)))] == [OLD, OLD]
    assert (await loads(log))[-1] == (pinned, OLD)


def endless(model: Path, folder: Path) -> Path:
    """Return a copy of a model that has no token to end with."""
    shutil.copytree(model, folder)
    for name in ("config.json", "generation_config.json"):
        told = orjson.loads((folder / name).read_bytes())
        (folder / name).write_bytes(orjson.dumps(told | {"eos_token_id": None}))
    tokens = folder / "tokenizer_config.json"
    tokens.write_bytes(orjson.dumps(orjson.loads(tokens.read_bytes()) | {"eos_token": "<never>"}))
    return folder


async def test_tasks_of_one_model_run_together_whatever_they_call_it(
    log: EventLog, inbox: Inbox, tmp_path: Path, gpt2: Path
) -> None:
    folder = str(endless(gpt2, tmp_path / "endless"))
    names = (GPT2, f"{GPT2}@{OLD}")
    specs = [ModelSpec(kind="text-generation", reference=name, revision=OLD, path=folder) for name in names]
    agent = Agent(log, Settings(data_dir=tmp_path), Identity("w", "n", "cpu"), specs)
    queue = WorkQueue(log.connection, 30.0)
    routes = [Route("normal", encode_queue(name)) for name in names]
    await queue.ensure(routes)
    long, short = await submit(inbox, text(names[0], max_tokens=200)), await submit(inbox, text(names[1]))
    deliveries: list[Delivery] = []
    while len(deliveries) < 2:
        for route in routes:
            deliveries += await queue.pull(route, 1)
    try:
        await agent.runner.run(deliveries)
    finally:
        await agent.runner.close()
        await queue.close()
    ended = [(await log.read_task(task_id))[-1] for task_id in (long, short)]
    assert [type(recorded.event) for recorded in ended] == [TaskSucceeded] * 2
    assert [event.usage.output_tokens for each in ended if isinstance(event := each.event, TaskSucceeded)] == [200, 4]
    assert ended[1].sequence < ended[0].sequence


async def test_what_came_for_another_model_meanwhile_is_left_to_who_is_idle(
    log: EventLog, inbox: Inbox, tmp_path: Path
) -> None:
    """Two that were asked for may come at once; the second would wait for the end of the first."""
    specs = [ModelSpec(kind="echo", reference=name) for name in ("one", "two")]
    agent = Agent(log, Settings(data_dir=tmp_path), Identity("w", "n", "cpu"), specs)
    queue, other = WorkQueue(log.connection, 30.0), WorkQueue(log.connection, 30.0)
    routes = [Route("normal", encode_queue(name)) for name in ("one", "two")]
    await queue.ensure(routes)
    long, short = [
        await submit(inbox, echo(steps=20, step_ms=100).model_copy(update={"model": name})) for name in ("one", "two")
    ]
    deliveries = [(await eventually(partial(queue.pull, route, 1)))[0] for route in routes]

    async def come_at_once() -> list[Delivery]:
        return deliveries

    agent._pull = come_at_once  # pyright: ignore[reportPrivateUsage]
    running = asyncio.create_task(agent._round())  # pyright: ignore[reportPrivateUsage]
    try:
        (handed_back,) = await eventually(lambda: other.pull(routes[1], 1))
        assert handed_back.delivered == 2
        assert not running.done()
        await running
    finally:
        await agent.runner.close()
        await queue.close()
        await other.close()
    assert isinstance((await log.read_task(long))[-1].event, TaskSucceeded)
    assert len(await log.read_task(short)) == 1


async def revision(log: EventLog, task_id: TaskId) -> str | None:
    history = await outcome(log, task_id)
    assert isinstance(history[-1].event, TaskSucceeded), history[-1].event
    return next(recorded.event.revision for recorded in history if isinstance(recorded.event, TaskAssigned))


async def test_a_named_model_may_come_later_but_not_a_named_folder(
    log: EventLog, inbox: Inbox, start: Start, tmp_path: Path, gpt2: Path
) -> None:
    child = await start(BITINGLIP_WORKER_MODELS=f"echo,{GPT2}")
    task_id = await submit(inbox, text(GPT2))
    assert f"{GPT2} is not served: it is not here yet" in "\n".join(child.last_lines())
    assert not any(is_terminal(recorded.event) for recorded in await log.read_task(task_id))
    snapshot(tmp_path / "hub", GPT2, OLD, gpt2)
    child.tell("models")
    assert await revision(log, task_id) == OLD
    with pytest.raises(ChildFailed, match="not on this machine"):
        await start(BITINGLIP_WORKER_MODELS=f"echo,{GPT2}={tmp_path / 'none'}")


async def test_a_model_that_its_device_can_never_hold_is_not_served(
    log: EventLog, start: Start, tmp_path: Path, gpt2: Path, eventually: Any
) -> None:
    child = await start(BITINGLIP_WORKER_MEMORY_GB="0.01")
    (tmp_path / "data" / "models").mkdir(parents=True, exist_ok=True)
    put(tmp_path / "data" / "models" / "gpt2", gpt2)
    child.tell("models")

    async def told() -> bool:
        return "gpt2 is not served: it needs about 0.1 GiB" in "\n".join(child.last_lines())

    await eventually(told)
    assert await log.read_last(WORKERS, subjects.worker_subject("w", "models_changed")) is None
    assert await log.read_last(MODELS, subjects.model_subject("gpt2", "registered")) is None
