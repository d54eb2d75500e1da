"""The pace of a projector: how long it rests between two transactions.

However few its events are, a transaction costs more than ten milliseconds of a core, most of it the planning of its
statements. So what comes on and on is written only as often as it takes for events to be seen soon; where others wait
for the same cores, more seldom.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

AIM_S = 0.042
"""How soon half of the events that come on and on are to be seen. On the average an event waits for half of a rest and
a transaction, and then for the transaction that it is in."""
LESS_REST_S = 0.015
"""How much less than the last transaction took it rests at least: the longer that is, the more there is to write, and
the more is gained by gathering it."""
BUSY_REST = 16
"""How many times as long as that it rests at least on a machine that is busy."""
BUSY = 0.45
"""Seconds that transactions wait for a core, for each second in which they have one, at which a machine is busy.
Beside an engine that has all cores it is 0.65 to 0.8, beside the log's own server alone 0.05 to 0.2."""
LATEST, MOST_WAITS = 0.15, 2.0
"""What the latest transaction counts for beside those before it, and the most that it tells."""
MOST_REST_S, MOST_BUSY_REST_S = 0.25, 0.5
WORTHWHILE = 35
"""Events that are worth a transaction of their own, within `MOST_REST_S` of the last one."""
AWAITED_S = 0.005
"""Seconds for which a batch grows that somebody waits for."""
SCHEDULED = Path("/proc/thread-self/schedstat")
"""Nanoseconds in which this thread had a core, and in which it waited for one, as Linux tells them."""


def rest_s(took_s: float, waits: float) -> float:
    """Return how long to rest after a transaction that took so long, in seconds.

    `waits`: seconds that transactions wait for a core, for each second in which they have one.
    """
    is_busy = waits > BUSY
    least = BUSY_REST * took_s if is_busy else took_s - LESS_REST_S
    return min(max(2 * AIM_S - 3 * took_s, least), MOST_BUSY_REST_S if is_busy else MOST_REST_S)


def due_at(came_at: float, flush_s: float, wrote_at: float, resting_s: float) -> float:
    """Return when a batch is to be written, all by one clock, in seconds.

    It gathers for `flush_s` after its first event came. Beside a transaction and a rest that is time that passes
    anyway: it is not waited for once more.
    """
    return max(came_at + flush_s, wrote_at + resting_s)


class Pace:
    """Times transactions, and remembers how much the last ones waited for a core: one alone tells little."""

    def __init__(self) -> None:
        self._waits = 0.0

    def timed(self, work: Callable[[], None]) -> float:
        """Do a transaction in this thread, and return how long to rest after it, in seconds."""
        started, worked, waited = time.monotonic(), time.thread_time(), _waited_s()
        work()
        took_s, worked_s = time.monotonic() - started, time.thread_time() - worked
        waits = (_waited_s() - waited) / worked_s if worked_s > 0 else 0.0
        self._waits += LATEST * (min(waits, MOST_WAITS) - self._waits)
        return rest_s(took_s, self._waits)


def _waited_s() -> float:
    """Return for how long this thread has waited for a core; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(SCHEDULED.read_bytes().split()[1]) / 1e9
    return 0.0
