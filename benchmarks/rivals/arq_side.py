"""arq on Redis: the worker's settings, and its client as `python -m benchmarks.rivals.arq_side`.

Both poll: by default twice a second, here as often as serves them best.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import uvloop
from arq import create_pool  # pyright: ignore
from arq.connections import RedisSettings  # pyright: ignore

from benchmarks.rivals.side import IN_FLIGHT, measure, run

REDIS: Any = RedisSettings.from_dsn(os.environ["RIVAL_URL"])
POLL_S = float(os.environ.get("RIVAL_POLL_S", "0.02"))
WORKER_POLL_S = float(os.environ.get("RIVAL_WORKER_POLL_S", "0.005"))
QUIET: dict[str, Any] = {"version": 1, "disable_existing_loggers": True, "root": {"level": "WARNING"}}


async def noop(_: dict[str, Any], message: int) -> int:
    """Do nothing."""
    return message


class WorkerSettings:
    """What `arq` reads."""

    functions = (noop,)
    redis_settings = REDIS
    max_jobs = IN_FLIGHT
    poll_delay = WORKER_POLL_S


async def client() -> dict[str, float]:
    """Measure."""
    redis = await create_pool(REDIS)

    async def one() -> None:
        job = await redis.enqueue_job("noop", 1)
        await job.result(timeout=60, poll_delay=POLL_S)

    return await measure(one)


if __name__ == "__main__":
    run(client())
else:
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
