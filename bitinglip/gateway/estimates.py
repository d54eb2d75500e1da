"""What a queue's figures mean for a task that comes now."""

from __future__ import annotations

RATE_S = 60
"""Seconds over which the rate is taken."""


def wait_s(waiting: int, rate: float, *, paused: bool) -> float | None:
    """Return how long a task will wait that comes now: until all that wait before it have ended, at the same rate."""
    if paused or (waiting and not rate):
        return None
    return round(waiting / rate, 3) if waiting else 0.0
