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

AIM_S = 0.045
"""How soon half of the events that come on and on are to be seen. On the average an event waits for half of a rest and
a transaction, and then for the transaction that it is in."""
LEAST_REST, BUSY_REST = 0.7, 16
"""How many times as long as the last transaction took it rests at least; and on a machine that is busy."""
BUSY = 0.35
"""Seconds that a transaction waited for a core, for each second in which it had one, at which a machine is busy.
Beside an engine that has all cores they were 0.4 to 1.1, where only the log's own server ran 0.05 to 0.25."""
MOST_REST_S, MOST_BUSY_REST_S = 0.25, 0.5
WORTHWHILE = 50
"""Events that are worth a transaction of their own, within `MOST_REST_S` of the last one."""
AWAITED_S = 0.005
"""Seconds for which a batch grows that somebody waits for."""
SCHEDULED = Path("/proc/thread-self/schedstat")
"""Nanoseconds in which this thread had a core, and in which it waited for one, as Linux tells them."""


def rest_s(took_s: float, worked_s: float, waited_s: float) -> float:
    """Return how long to rest after a transaction, in seconds.

    It took so long, had a core for a part of that, and waited for one for another.
    """
    busy = waited_s > BUSY * worked_s
    least, most = (BUSY_REST, MOST_BUSY_REST_S) if busy else (LEAST_REST, MOST_REST_S)
    return min(max(2 * AIM_S - 3 * took_s, least * took_s), most)


def timed(work: Callable[[], None]) -> float:
    """Do a transaction in this thread, and return how long to rest after it, in seconds."""
    started, worked, waited = time.monotonic(), time.thread_time(), _waited_s()
    work()
    return rest_s(time.monotonic() - started, time.thread_time() - worked, _waited_s() - waited)


def _waited_s() -> float:
    """Return for how long this thread has waited for a core; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(SCHEDULED.read_bytes().split()[1]) / 1e9
    return 0.0
