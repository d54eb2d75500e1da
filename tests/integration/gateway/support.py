"""A running gateway, a reader of event streams, and a stand-in for the worker that appends what one would."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import orjson

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelRegistered
from bitinglip.events.task import Failure, TaskEvent, Usage
from bitinglip.gateway.app import serve
from bitinglip.ids import TaskId
from bitinglip.settings import Settings
from bitinglip.tasks.commands import (
    AssignAttempt,
    FailAttempt,
    ProgressAttempt,
    StopAttempt,
    SucceedAttempt,
    TaskCommand,
)
from bitinglip.tasks.state import Task, decide, fold

ECHO: dict[str, Any] = {"kind": "echo", "model": "echo", "params": {"message": "hello"}}
MODELS = (("echo", "echo"), ("text-generation", "org/writer"), ("embedding", "org/vectors@main"))
UNKNOWN_ID = "01JZ0000000000000000000000"


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Run a gateway and yield its address; it is stopped as a signal would stop it."""
    stop = asyncio.Event()
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    server = asyncio.create_task(serve(settings, url.set_result, stop))
    await asyncio.wait((server, url), return_when=asyncio.FIRST_COMPLETED)
    if server.done():
        server.result()
    try:
        yield url.result()
    finally:
        stop.set()
        await server


async def register(log: EventLog, kind: str, reference: str) -> None:
    """Say that a worker can run this model."""
    event = ModelRegistered(reference=reference, kind=kind, revision=None)
    await log.append(log.fact_append(event, subjects.model_subject(reference, "registered"), reference))


class Player:
    """Plays the worker: decides as one would, and appends the events."""

    def __init__(self, log: EventLog) -> None:
        self.log = log

    async def task(self, task_id: str) -> Task:
        """Return the task as its history tells it."""
        task = fold(await self.log.read_task(TaskId(task_id)))
        assert task is not None
        return task

    async def assign(self, task_id: str, revision: str | None = None) -> int:
        """Take the next attempt."""
        task = await self.task(task_id)
        return await self._do(
            task_id,
            AssignAttempt(
                ready_sequence=task.ready_sequence,
                worker_id="w-0",
                node_id="w",
                device="cpu",
                revision=revision,
                batch_size=1,
                now=self.log.clock(),
            ),
        )

    async def progress(self, task_id: str, step: int, text: str | None = None) -> int:
        """Take a step."""
        return await self._do(task_id, ProgressAttempt(attempt=1, worker_id="w-0", step=step, total=10, text=text))

    async def succeed(self, task_id: str, **result: Any) -> int:
        """End the task well."""
        return await self._do(
            task_id,
            SucceedAttempt(
                attempt=1, worker_id="w-0", result=result, usage=Usage(output_tokens=3), run_ms=1.5, versions={"t": "1"}
            ),
        )

    async def fail(self, task_id: str) -> int:
        """Fail the attempt for good."""
        failure = Failure(kind="bad_input", message="no", retryable=False)
        now = self.log.clock()
        return await self._do(
            task_id, FailAttempt(attempt=1, worker_id="w-0", failure=failure, run_ms=1.0, now=now, jitter=0.0)
        )

    async def stop(self, task_id: str) -> int:
        """Stop, as its cancellation asked for."""
        return await self._do(task_id, StopAttempt(attempt=1, worker_id="w-0"))

    async def run(self, task_id: str, **result: Any) -> int:
        """Run the task from its assignment to its result."""
        await self.assign(task_id)
        return await self.succeed(task_id, **result)

    async def _do(self, task_id: str, command: TaskCommand) -> int:
        task = await self.task(task_id)
        events = decide(task, command)
        assert isinstance(events, tuple)
        sequence = task.sequence
        for event in events:
            assert isinstance(event, TaskEvent)
            sequence = await self.log.append(self.log.task_append(event, sequence))
        return sequence


@dataclass(frozen=True)
class Seen:
    """One server-sent event."""

    id: int
    type: str
    event: dict[str, Any]


async def read_stream(response: httpx.Response) -> AsyncIterator[Seen]:
    """Yield a response's events until it ends."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line == "":
            if fields:
                yield Seen(int(fields["id"]), fields["event"], orjson.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value


async def collect(
    client: httpx.AsyncClient, url: str, params: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> list[Seen]:
    """Return all events of a stream that ends."""
    async with client.stream("GET", url, params=params, headers=headers) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        return [seen async for seen in read_stream(response)]


async def submitted(
    client: httpx.AsyncClient, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
) -> str:
    """Submit a task and return its id."""
    response = await client.post("/v1/tasks", json=body or ECHO, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()["task_id"]


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that this is a whole problem document, and return it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:bitinglip:error:{code}"
    assert problem["status"] == status
    assert all(problem[name] for name in ("title", "detail", "remedy"))
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem


async def replayed(url: str, task_id: str) -> tuple[int, dict[str, Any]]:
    """Replay a task by the command line; returns how that ended, and what it told."""
    command = (sys.executable, "-m", "bitinglip.cli.main", "task", "replay", task_id, "--url", url, "--json")
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return process.returncode, orjson.loads(out or b"{}")
