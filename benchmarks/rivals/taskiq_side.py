"""taskiq on JetStream (taskiq-nats): the broker, and its client as `python -m benchmarks.rivals.taskiq_side`.

Results are in Redis (taskiq-redis), which its client polls: those in NATS make a consumer for each look, and the
server refuses them at 100 in flight. Without a Redis nothing is stored: the task itself tells the client, by plain
NATS, that it has run, which is less than a result but the fastest that the library does.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

from taskiq import Context, TaskiqDepends  # pyright: ignore
from taskiq_nats import PullBasedJetStreamBroker  # pyright: ignore
from taskiq_redis import RedisAsyncResultBackend  # pyright: ignore

from benchmarks.rivals.side import measure, run

REDIS = os.environ.get("RIVAL_REDIS")
POLL_S = float(os.environ.get("RIVAL_POLL_S", "0.01"))

broker: Any = PullBasedJetStreamBroker(os.environ["RIVAL_URL"])  # one message a pull: more stall it
if REDIS:
    broker = broker.with_result_backend(RedisAsyncResultBackend(REDIS, result_ex_time=3600))


async def _noop(message: int) -> int:
    """Do nothing."""
    return message


async def _telling(inbox: str, context: Any = TaskiqDepends(Context)) -> None:  # noqa: B008
    """Do nothing, and tell."""
    await context.broker.client.publish(f"{inbox}.{context.message.task_id}", b"")


noop: Any = broker.task(task_name="noop")(_noop)
telling: Any = broker.task(task_name="telling")(_telling)


async def client() -> dict[str, float]:
    """Measure."""
    await broker.startup()
    return await (measure(_one) if REDIS else _told())


async def _one() -> None:
    task = await noop.kiq(1)
    await task.wait_result(check_interval=POLL_S, timeout=60)


async def _told() -> dict[str, float]:
    waiting: dict[str, asyncio.Future[None]] = {}
    inbox = broker.client.new_inbox()

    async def heard(message: Any) -> None:
        waiting.pop(message.subject.rpartition(".")[2]).set_result(None)

    await broker.client.subscribe(f"{inbox}.*", cb=heard)

    async def one() -> None:
        task_id = uuid.uuid4().hex
        waiting[task_id] = told = asyncio.get_running_loop().create_future()
        await telling.kicker().with_task_id(task_id).kiq(inbox)
        await told

    return await measure(one)


if __name__ == "__main__":
    run(client())
