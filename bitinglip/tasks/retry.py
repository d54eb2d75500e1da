"""What follows a failed attempt: a pure function of the policy, the failure and how many came before it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from bitinglip.events.task import Failure, RetryPolicy

IMMEDIATE = frozenset({"lost_lease", "worker_crashed", "worker_stopped"})
"""Not the task's own doing, and known late already: no back-off."""

UNCOUNTED = frozenset({"worker_stopped"})
"""An operator's doing: it uses up no attempt."""

CRASHES = frozenset({"engine_crashed", "worker_crashed"})
"""The process that ran the attempt ended: by the doing of one of the tasks that it ran, or of something else."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Another attempt follows, not before this time."""

    at: datetime


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure is the caller's to mend: another attempt would fail the same way."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The attempts are used up."""


RetryDecision = RetryAt | GiveUp | DeadLetter


def decide_retry(policy: RetryPolicy, failure: Failure, failures: int, now: datetime, jitter: float) -> RetryDecision:
    """Decide what follows a failure; `failures` counts this one, `jitter` is from 0 to 1."""
    if not failure.retryable or failure.kind in policy.not_on:
        return GiveUp()
    if failure.kind not in UNCOUNTED and failures >= policy.max_attempts:
        return DeadLetter()
    if failure.kind in IMMEDIATE:
        return RetryAt(now)
    return RetryAt(now + backoff(policy, failures, jitter))


def policies_of_kinds(told: Iterable[str]) -> dict[str, RetryPolicy]:
    """Return the default policy of each kind that has one of its own; told as `KIND=ATTEMPTS/BASE_MS/MAX_MS`.

    >>> policies_of_kinds(["embedding=5/100/2000"])["embedding"].max_attempts
    5
    """
    found: dict[str, RetryPolicy] = {}
    for text in told:
        kind, _, numbers = text.partition("=")
        attempts, base_ms, max_ms = map(int, numbers.split("/"))
        found[kind] = RetryPolicy(max_attempts=attempts, base_ms=base_ms, max_ms=max_ms)
    return found


def backoff(policy: RetryPolicy, failures: int, jitter: float) -> timedelta:
    """Return the wait after so many failures: exponential, its upper half by chance.

    >>> backoff(RetryPolicy(base_ms=1000, max_ms=60000), 3, 1.0)
    datetime.timedelta(seconds=4)
    >>> backoff(RetryPolicy(base_ms=1000, max_ms=60000), 3, 0.0)
    datetime.timedelta(seconds=2)
    """
    longest = min(policy.base_ms * 2 ** min(failures - 1, 40), policy.max_ms)
    return timedelta(milliseconds=longest * (0.5 + 0.5 * jitter))
