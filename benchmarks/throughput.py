"""How many no-op tasks one worker brings to their end a second, beside the floor: the same events from a bare loop.

Everything is on: events with expected sequences, leases, the engine process, and a gateway that projects them all.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import nats
import uvloop
from nats.js.api import ConsumerConfig

from benchmarks.support import Figure, gateway, nats_server, publish, scratch, worker
from bitinglip.events.envelope import encode
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS, Route, consumer
from bitinglip.events.subjects import TaskSubject, encode_token
from bitinglip.events.task import TaskAssigned, TaskSubmitted, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.settings import Nats

TASKS_COUNT = 20_000
BATCH = 256


async def measure() -> list[Figure]:
    """Measure the floor and the worker, on one server, in one run."""
    async with scratch() as folder, nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url), "/bench")
        await submit(log, "floor", TASKS_COUNT)
        floor = await bare_loop(server.url, TASKS_COUNT)
        alone = await one_worker(log, server.url, folder / "a", TASKS_COUNT, projected=False)
        rate = await one_worker(log, server.url, folder / "b", TASKS_COUNT, projected=True)
        await log.close()
    return [
        Figure("worker, tasks queued: to their terminal event", rate, "tasks/s", 3000, at_least=True),
        Figure(
            "the same, as a share of the raw floor", rate / floor, "", 0.3, at_least=True, note=f"floor {floor:,.0f}/s"
        ),
        Figure("worker without a gateway that projects", alone, "tasks/s", 3000, at_least=True),
    ]


async def submit(log: EventLog, model: str, count: int) -> None:
    """Put tasks into the log."""
    route = ("normal", encode_token(model))
    for start in range(0, count, 5000):
        events = [submission(TaskId(log.ids()), model) for _ in range(start, min(count, start + 5000))]
        outcomes = await log.append_all([log.task_append(event, 0, route=route) for event in events])
        assert all(isinstance(outcome, int) for outcome in outcomes)


def submission(task_id: TaskId, model: str) -> TaskSubmitted:
    """Return a no-op task."""
    return TaskSubmitted(
        task_id=task_id, kind="echo", model=model, lane="normal", params={"message": 1}, request_sha256="0" * 64
    )


async def one_worker(log: EventLog, url: str, folder: Path, count: int, *, projected: bool) -> float:
    """Return the rate of one worker over tasks that are queued already."""
    folder.mkdir()
    await submit(log, "echo", count)
    before = await log.last_sequence(TASKS)
    if not projected:
        return await _drained(log, url, folder, before, count)
    async with gateway(url, folder):
        return await _drained(log, url, folder, before, count)


async def _drained(log: EventLog, url: str, folder: Path, before: int, count: int) -> float:
    async with worker(url, folder):
        first = before
        while first == before:
            first = await log.last_sequence(TASKS)
        started = time.perf_counter()
        last = first
        while last < before + 2 * count:
            await asyncio.sleep(0.01)
            last = await log.last_sequence(TASKS)
        return (before + 2 * count - first) / 2 / (time.perf_counter() - started)


async def bare_loop(url: str, count: int) -> float:
    """Return the rate of a plain nats-py loop that pulls, publishes the same two events in flight, and acks."""
    client = await nats.connect(url)
    js = client.jetstream(publish_async_max_pending=8192)
    route = Route("normal", encode_token("floor"))
    config: ConsumerConfig = consumer(route, 30.0)
    await js.add_consumer(QUEUE, config=config)
    pull = await js.pull_subscribe_bind(consumer=route.consumer, stream=QUEUE)
    done = 0
    started = time.perf_counter()
    while done < count:
        messages = await pull.fetch(BATCH, timeout=5)
        sequences = [int((message.headers or {})["Nats-Stream-Source"].split(" ")[1]) for message in messages]
        ids = [message.subject.rpartition(".")[2] for message in messages]
        acks = await _publish(js, ids, sequences, _assigned)
        await _publish(js, ids, acks, _succeeded)
        for message in messages:
            await message.ack()
        done += len(messages)
    await client.flush()
    rate = count / (time.perf_counter() - started)
    await client.close()
    return rate


async def _publish(js: Any, ids: list[str], expected: list[int], make: Any) -> list[int]:
    futures = [
        await js.publish_async(
            str(TaskSubject(TaskId(task_id), make(task_id)[0])),
            make(task_id)[1],
            headers={
                "Nats-Expected-Last-Subject-Sequence": str(sequence),
                "Nats-Expected-Last-Subject-Sequence-Subject": f"bl.task.{task_id}.>",
            },
        )
        for task_id, sequence in zip(ids, expected, strict=True)
    ]
    return [(await future).seq for future in futures]


def _template(event: Any) -> bytes:
    from bitinglip.events.clock import system_clock

    return encode(event, id="0" * 26, source="/bench", time=system_clock(), about="x" * 26)


_ASSIGNED = _template(TaskAssigned.model_validate(TaskAssigned.example))
_SUCCEEDED = _template(TaskSucceeded.model_validate(TaskSucceeded.example))


def _assigned(task_id: str) -> tuple[str, bytes]:
    return "assigned", _ASSIGNED


def _succeeded(task_id: str) -> tuple[str, bytes]:
    return "succeeded", _SUCCEEDED


if __name__ == "__main__":
    publish(uvloop.run(measure()))
