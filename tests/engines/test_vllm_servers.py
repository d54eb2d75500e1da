"""vLLM servers: one that is started for a model, and one that is joined; and the worker that has them."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bitinglip.errors import InvalidConfig, ModelNotFound
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskSucceeded
from bitinglip.settings import Settings, Worker
from bitinglip.settings import load as load_settings
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal
from bitinglip.workers.engine import (
    JobAnswer,
    JobFailed,
    JobProgressed,
    JobSpec,
    JobSucceeded,
    LoadFailed,
    ModelSpec,
    Placement,
)
from bitinglip.workers.enginehost import EngineHost
from bitinglip.workers.engines import vllm
from bitinglip.workers.engines.failures import LoadError, UnusableModelError
from bitinglip.workers.main import serve
from tests.engines.support import load, run
from tests.engines.vllm_support import COMMAND, TEXT, Running, failure_of, release, start_standin
from tests.support.cluster import Cluster
from tests.support.standin_vllm import VERSION


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Running]:
    """A server that runs already, with two models."""
    running = start_standin(tmp_path, "org/big", "org/other")
    yield running
    running.stop()


@pytest.fixture
def joined(standin: Running) -> ModelSpec:
    """A model on the server that runs."""
    return ModelSpec(kind="text-generation", reference="org/big", vllm=standin.url)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What is enough of a model for a server that stands in."""
    (tmp_path / "model.safetensors").touch()
    return tmp_path


@pytest.fixture
def own(folder: Path) -> ModelSpec:
    """A model that a server is started for."""
    return ModelSpec(kind="text-generation", reference="org/own", path=str(folder), vllm="start")


@pytest.fixture
async def host() -> AsyncIterator[EngineHost]:
    """An engine process that starts servers."""
    host = EngineHost(Worker(vllm_command=shlex.join(COMMAND), max_loaded=3), "cpu")
    await host.start()
    yield host
    await host.stop()


def server_of(pid: int) -> psutil.Process:
    (server,) = [child for child in psutil.Process(pid).children() if "--served-model-name" in child.cmdline()]
    return server


def url_of(server: psutil.Process) -> str:
    command = server.cmdline()
    return f"http://127.0.0.1:{command[command.index('--port') + 1]}"


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


# --- a server of our own ----------------------------------------------------------------------------------------------


async def test_a_server_is_started_answers_and_ends_with_its_model(host: EngineHost, own: ModelSpec) -> None:
    (said,) = await run(host, own, {"prompt": "say it"})
    assert (said.result["text"], said.text) == (TEXT, TEXT)
    assert host.loaded[own.key].device == "cpu"
    server = server_of(host.pid)
    await host.unload(own.key)
    assert gone(server)


async def test_when_a_server_of_ours_ends_its_process_is_replaced(host: EngineHost, own: ModelSpec) -> None:
    for said in await run(host, own, {"prompt": "crash"}, {"prompt": "forever"}):
        kind, retryable, message = failure_of(said)
        assert (kind, retryable) == ("engine_crashed", True)
        assert "exit status 3" in message
        assert "RuntimeError: it was asked to crash" in message
    assert "exit status 87" in await host.wait_exit()


async def test_it_is_replaced_as_well_if_its_first_job_has_ended(host: EngineHost, own: ModelSpec) -> None:
    key = await load(host, own)
    server = server_of(host.pid)
    answers: list[JobAnswer] = []
    later: list[asyncio.Task[None]] = []

    async def ask(prompt: str) -> None:
        async for messages in host.run(key, [JobSpec(task_id=prompt, params={"prompt": prompt})]):
            for message in messages:
                if not isinstance(message, JobProgressed):
                    answers.append(message)
                if isinstance(message, JobSucceeded):
                    server.kill()
                elif prompt == "forever" and isinstance(message, JobProgressed):
                    release(url_of(server))
                elif not later:
                    later.append(asyncio.create_task(ask("forever")))

    await ask("hold")
    await later[0]
    held, lost = answers
    assert isinstance(held, JobSucceeded)
    assert isinstance(lost, JobFailed)
    assert lost.failure.kind == "engine_crashed"
    assert "killed by signal 9" in lost.failure.message
    assert "exit status 87" in await host.wait_exit()


async def test_a_server_ends_when_its_process_is_killed(
    host: EngineHost, own: ModelSpec, eventually: Callable[..., Any]
) -> None:
    await load(host, own)
    server = server_of(host.pid)
    os.kill(host.pid, signal.SIGKILL)
    await eventually(lambda: gone(server))


# --- loading ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_does_not_come_up_says_why(host: EngineHost, own: ModelSpec, folder: Path) -> None:
    (folder / "broken").write_text("no such card")
    failed = await host.load(own)
    assert isinstance(failed, LoadFailed)
    assert (failed.failure.kind, failed.failure.retryable) == ("load_failed", True)
    assert "exit status 1 (ValueError: no such card in org/own)" in failed.failure.message
    assert not psutil.Process(host.pid).children()


def test_a_command_that_is_not_there_says_what_to_do(own: ModelSpec) -> None:
    with pytest.raises(LoadError, match=r"no-such-vllm.*worker\.vllm_command"):
        vllm.load(own, Placement("cpu", vllm_command=("no-such-vllm", "serve")), lambda *_: None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "embedding"}, "embedding"),
        ({"quantize": "int4"}, r"worker\.quantize"),
        ({"path": "tests/support"}, r"worker\.trust_pickles"),
    ],
)
def test_a_model_that_is_not_for_vllm_is_refused(own: ModelSpec, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UnusableModelError, match=says):
        vllm.load(own.model_copy(update=change), Placement("cpu", vllm_command=COMMAND), lambda *_: None)


def test_a_joined_server_must_be_there(tmp_path: Path) -> None:
    running = start_standin(tmp_path, "one")
    model = ModelSpec(kind="text-generation", reference="one", vllm=running.url)
    lost = model.model_copy(update={"vllm": f"{running.url}/elsewhere"})
    with pytest.raises(LoadError, match="no vLLM server answers"):
        vllm.load(lost, Placement("cpu"), lambda *_: None)
    running.stop()
    with pytest.raises(LoadError, match="no vLLM server answers"):
        vllm.load(model, Placement("cpu"), lambda *_: None)


def test_one_model_of_several_must_have_the_name(joined: ModelSpec) -> None:
    with pytest.raises(LoadError, match=r"org/big, org/other.*--served-model-name"):
        vllm.load(joined.model_copy(update={"reference": "org/mine"}), Placement("cpu"), lambda *_: None)


def test_a_started_server_gets_its_cards_its_options_and_a_key(own: ModelSpec, monkeypatch: Any) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,6")
    told: list[tuple[int, int]] = []
    placement = Placement("cuda:1,cuda:0", dtype="bfloat16", vllm_command=COMMAND)
    trusted = own.model_copy(update={"trust_code": True})
    model = vllm.load(trusted, placement, lambda done, total: told.append((done, total)))
    server = server_of(os.getpid())
    settings = httpx.get(f"{url_of(server)}/standin", trust_env=False).json()
    stranger = httpx.get(f"{url_of(server)}/v1/models", trust_env=False)
    model.unload()
    assert gone(server)
    assert (settings["cards"], settings["dtype"], settings["trust_remote_code"]) == ("GPU-abc,4", "bfloat16", True)
    assert (model.device, model.dtype) == ("cuda:1,cuda:0", "bfloat16")
    assert stranger.status_code == 401
    assert (told[0], told[-1]) == ((0, 1), (1, 1))


async def test_a_joined_model_takes_nobodys_room_and_a_started_one_all(
    host: EngineHost, joined: ModelSpec, own: ModelSpec, gpt2: ModelSpec
) -> None:
    await load(host, gpt2)
    await load(host, joined)
    assert set(host.loaded) == {gpt2.key, joined.key}
    await load(host, own)
    assert gpt2.key not in host.loaded
    server = server_of(host.pid)
    await load(host, gpt2)
    assert own.key not in host.loaded
    assert gone(server)


def test_it_needs_no_torch() -> None:
    code = "import sys, bitinglip.workers.engines.host, bitinglip.workers.engines.vllm; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


# --- a worker ---------------------------------------------------------------------------------------------------------


async def test_a_worker_serves_a_model_that_is_not_on_its_machine(
    log: EventLog, cluster: Cluster, standin: Running
) -> None:
    worker = await cluster.worker("org/big", "echo", BITINGLIP_WORKER_VLLM=f"org/big={standin.url}")
    assert worker.ready["models"] == ["org/big", "echo"]
    command = SubmitTask(kind="text-generation", model="org/big", params={"prompt": "say"})
    task_id = (await Inbox(log, inline_max_bytes=65_536).submit(command)).task_id
    async with asyncio.timeout(60), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            if any(is_terminal(recorded.event) for recorded in batch):
                break
    end = (await log.read_task(task_id))[-1].event
    assert isinstance(end, TaskSucceeded), end
    assert end.result == {"text": TEXT, "finish_reason": "stop", "seed": None}
    assert (end.device, end.versions) == (standin.url, {"vllm": VERSION})


@pytest.mark.parametrize(
    ("served", "entry", "error"),
    [("echo", "org/big=http://127.0.0.1:1", InvalidConfig), ("org/big", "org/big", ModelNotFound)],
)
async def test_a_worker_refuses_what_it_cannot_serve(
    tmp_path: Path, served: str, entry: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="org/big"):
        await serve(Settings(data_dir=tmp_path, worker=Worker(models=(served,), vllm=(entry,))))


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"worker\.vllm"):
        load_settings(environ={"BITINGLIP_WORKER_VLLM": "org/big=localhost:8000"})
