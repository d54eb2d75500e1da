"""Celery on Redis, acks late, results in Redis: the application, and `python -m benchmarks.rivals.celery_side`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import Any

from celery import Celery  # pyright: ignore

from benchmarks.rivals.side import ALONE, IN_FLIGHT, TASKS, WARM_UP, figures

URL = os.environ["RIVAL_URL"]
app: Any = Celery("rival", broker=f"{URL}/0", backend=f"{URL}/1")
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=int(os.environ.get("RIVAL_PREFETCH", "1")))


def _noop(message: int) -> int:
    """Do nothing."""
    return message


noop: Any = app.task(name="noop")(_noop)


def rate(count: int) -> float:
    """Return tasks a second, `IN_FLIGHT` of them at any time: the oldest one is awaited, then one more submitted."""
    waiting: deque[Any] = deque()
    started = time.perf_counter()
    for _ in range(count):
        if len(waiting) >= IN_FLIGHT:
            waiting.popleft().get(timeout=60)
        waiting.append(noop.delay(1))
    while waiting:
        waiting.popleft().get(timeout=60)
    return count / (time.perf_counter() - started)


def main() -> None:
    """Measure, and print the figures as JSON."""
    rate(WARM_UP)
    per_s, taken = rate(TASKS), list[float]()
    for _ in range(ALONE):
        started = time.perf_counter()
        noop.delay(1).get(timeout=60)
        taken.append((time.perf_counter() - started) * 1000)
    sys.stdout.write(json.dumps(figures(per_s, taken)) + "\n")


if __name__ == "__main__":
    main()
