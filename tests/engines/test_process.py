"""The engine process itself, by `echo`: answers, failures, crashes, cancels, its own end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from bitinglip.errors import EngineDied
from bitinglip.settings import Worker
from bitinglip.workers.engine import JobCancelled, JobFailed, JobProgressed, JobSpec, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from tests.engines.support import load, run

ECHO = ModelSpec(kind="echo", reference="echo")


async def test_each_job_gets_its_own_answer(host: EngineHost) -> None:
    said = await run(host, ECHO, *[{"message": {"n": n}} for n in range(300)])
    assert [each.result for each in said] == [{"message": {"n": n}} for n in range(300)]


async def test_a_failure_is_that_jobs_alone(host: EngineHost) -> None:
    good, bad, memory, wrong = await run(
        host, ECHO, {"message": 1}, {"fail": "bad_input"}, {"fail": "out_of_memory"}, {"no": "such"}
    )
    assert good.result == {"message": 1}
    failures = [each.answer for each in (bad, memory, wrong)]
    assert all(isinstance(answer, JobFailed) for answer in failures)
    kinds = [(answer.failure.kind, answer.failure.retryable) for answer in failures if isinstance(answer, JobFailed)]
    assert kinds == [("bad_input", False), ("out_of_memory", True), ("bad_input", False)]


async def test_ticks_are_merged_to_the_rate_and_the_last_step_is_told() -> None:
    host = EngineHost(Worker(ticks_per_s=5), "cpu")
    await host.start()
    (said,) = await run(host, ECHO, {"steps": 100, "step_ms": 5})
    await host.stop()
    steps = [tick.step for tick in said.ticks]
    assert steps == sorted(set(steps))
    assert steps[-1] == 100
    assert 3 <= len(steps) <= 12


async def test_a_crash_ends_the_run_with_its_reason_and_a_new_process_works(host: EngineHost) -> None:
    with pytest.raises(EngineDied, match="exit status"):
        await run(host, ECHO, {"fail": "crash"})
    assert not host.alive
    with pytest.raises(EngineDied):
        await run(host, ECHO, {"message": 1})
    other = EngineHost(Worker(), "cpu")
    await other.start()
    (said,) = await run(other, ECHO, {"message": 1})
    assert said.result == {"message": 1}
    await other.stop()


async def test_a_killed_process_is_noticed_at_once(host: EngineHost) -> None:
    key = await load(host, ECHO)
    with pytest.raises(EngineDied, match="signal 9"):
        await _kill_while_it_runs(host, key)
    assert "signal 9" in await host.wait_exit()


async def _kill_while_it_runs(host: EngineHost, key: str) -> None:
    async for _ in host.run(key, [JobSpec(task_id="a", params={"steps": 1000, "step_ms": 20})]):
        os.kill(host.pid, signal.SIGKILL)


async def test_a_running_job_is_cancelled_and_its_neighbour_runs(host: EngineHost) -> None:
    key = await load(host, ECHO)
    jobs = [JobSpec(task_id="a", params={"steps": 5000, "step_ms": 20}), JobSpec(task_id="b", params={"message": 2})]
    answers: dict[str, Any] = {}
    async for messages in host.run(key, jobs):
        host.cancel("a")
        answers |= {each.task_id: each for each in messages if not isinstance(each, JobProgressed)}
    assert isinstance(answers["a"], JobCancelled)
    assert answers["b"].result == {"message": 2}


async def test_cancelling_what_is_not_there_is_fine(host: EngineHost) -> None:
    host.cancel("nobody")
    (said,) = await run(host, ECHO, {"message": 1})
    assert said.result == {"message": 1}


async def test_an_unknown_kind_cannot_be_loaded(host: EngineHost) -> None:
    answer = await host.load(ModelSpec(kind="telepathy", reference="x"))
    assert isinstance(answer, LoadFailed)


async def test_the_process_ends_with_its_worker(eventually: Callable[..., Any]) -> None:
    code = """
import asyncio
from bitinglip.settings import Worker
from bitinglip.workers.enginehost import EngineHost

async def main():
    host = EngineHost(Worker(), "cpu")
    await host.start()
    print(host.pid, flush=True)
    await host.wait_exit()

asyncio.run(main())
"""
    worker = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    pid = int(await worker.stdout.readline())
    worker.kill()
    await worker.wait()
    await eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_light_process_needs_no_torch() -> None:
    code = "import sys, bitinglip.workers.engines.host, bitinglip.workers.engines.echo; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
