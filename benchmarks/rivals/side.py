"""What each side's client does, whatever it talks to: no-op tasks in flight, then one at a time.

It imports nothing of BitingLip's, for it runs among the packages of the other side.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

TASKS = int(os.environ.get("RIVAL_TASKS", "5000"))
IN_FLIGHT, WARM_UP, ALONE = 100, 300, 200


def run(client: Awaitable[dict[str, Any]]) -> None:
    """Run a client, and print its figures as JSON."""
    import uvloop

    async def main() -> dict[str, Any]:
        return await client

    sys.stdout.write(json.dumps(uvloop.run(main())) + "\n")


async def measure(one: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Measure with a coroutine that submits a task and returns when its result is known."""
    await rate(one, WARM_UP)
    per_s = await rate(one, TASKS)
    taken: list[float] = []
    for _ in range(ALONE):
        started = time.perf_counter()
        await one()
        taken.append((time.perf_counter() - started) * 1000)
    return figures(per_s, taken)


async def rate(one: Callable[[], Awaitable[object]], count: int) -> float:
    """Return tasks a second, `IN_FLIGHT` of them at any time."""
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            await one()

    started = time.perf_counter()
    await asyncio.gather(*[lane() for _ in range(IN_FLIGHT)])
    return count / (time.perf_counter() - started)


def figures(per_s: float, taken: list[float]) -> dict[str, float]:
    """Return a side's figures of one round."""
    return {"per_s": per_s, "ms": statistics.median(taken), "p99_ms": sorted(taken)[int(len(taken) * 0.99)]}
