"""A worker's own parts, used by hand: a private task is assigned, told of piece by piece, and answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitinglip.events.queue import Delivery
from bitinglip.events.streams import Route
from bitinglip.events.task import TaskEvent, Usage
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import TaskCommand
from bitinglip.tasks.state import decide, fold
from bitinglip.workers.attempt import Attempt
from bitinglip.workers.engine import JobProgressed, JobSucceeded, Loaded
from bitinglip.workers.identity import Identity
from bitinglip.workers.payload import read_params, store_result
from bitinglip.workers.words import Words
from tests.integration.gateway.support import register
from tests.integration.privacy.support import House
from tests.support.server import eventually


async def write_out(house: House, body: dict[str, Any], pieces: Sequence[str]) -> str:
    """Submit a task, and write its answer piece by piece; the result's text is the longest piece. Returns its id."""
    await register(house.log, body["kind"], body["model"])
    await eventually(lambda: _accepted(house, body))
    task_id = TaskId(await house.submit(body))
    words = Words(Identity("w-hand", "hand", "cpu"), house.log.clock)
    attempt = await _opened(house, task_id)
    await _do(house, attempt, words.assignment(attempt, None, 1))
    assert (await read_params(house.log.connection, attempt))["prompt"] == body["params"]["prompt"]
    for step, text in enumerate(pieces, 1):
        tick = JobProgressed(task_id=task_id, step=step, total=len(pieces), unit="token", text=text)
        await _do(house, attempt, words.progress(attempt, tick))
    result = {"text": max(pieces, key=len), "finish_reason": "stop"}
    stored, reference = await store_result(house.log.connection, attempt, result, 65_536)
    answer = JobSucceeded(task_id=task_id, result=result, usage=Usage(), run_ms=1.0)
    loaded = Loaded(model_key="", load_ms=0.0, memory_bytes=0, device="cpu")
    await _do(house, attempt, words.success(attempt, answer, answer.usage, loaded, stored, reference))
    return task_id


async def _accepted(house: House, body: dict[str, Any]) -> bool:
    """Whether the gateway has heard of the model."""
    models = (await house.client.get("/v1/models")).json()["data"]
    return any(model["id"] == body["model"] for model in models)


async def _opened(house: House, task_id: TaskId) -> Attempt:
    history = await house.log.read_task(task_id)
    task = fold(history)
    assert task is not None
    return Attempt(Delivery(house.log.connection, Route("normal", "hand"), history[0], 1, "hand"), task)


async def _do(house: House, attempt: Attempt, command: TaskCommand) -> None:
    events = decide(attempt.task, command)
    assert isinstance(events, tuple)
    sequence = attempt.task.sequence
    for event in events:
        assert isinstance(event, TaskEvent)
        sequence = await house.log.append(house.log.task_append(event, sequence))
    after = fold(await house.log.read_task(attempt.id))
    assert after is not None
    attempt.task = after
