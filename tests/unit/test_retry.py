"""The retry rule, by property."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.task import Failure, RetryPolicy
from bitinglip.tasks.retry import DeadLetter, GiveUp, RetryAt, backoff, decide_retry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CRASH = Failure(kind="engine_crashed", message="", retryable=True)
policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 100),
    base_ms=st.integers(0, 3_600_000),
    max_ms=st.integers(0, 86_400_000),
)


@given(policies, st.integers(1, 200), st.floats(0, 1))
def test_the_wait_is_bounded_and_its_upper_half_random(policy: RetryPolicy, failures: int, jitter: float) -> None:
    longest = backoff(policy, failures, 1.0)
    assert longest <= timedelta(milliseconds=policy.max_ms)
    assert longest / 2 <= backoff(policy, failures, jitter) <= longest


@given(policies, st.integers(1, 199))
def test_the_wait_never_shrinks(policy: RetryPolicy, failures: int) -> None:
    assert backoff(policy, failures, 1.0) <= backoff(policy, failures + 1, 1.0)


@given(policies, st.integers(1, 200), st.floats(0, 1))
def test_attempts_are_bounded(policy: RetryPolicy, failures: int, jitter: float) -> None:
    decision = decide_retry(policy, CRASH, failures, NOW, jitter)
    assert isinstance(decision, DeadLetter) == (failures >= policy.max_attempts)


@given(policies, st.integers(1, 200))
def test_a_policy_may_leave_out_kinds_of_failures(policy: RetryPolicy, failures: int) -> None:
    bent = policy.model_copy(update={"not_on": ("engine_crashed",)})
    assert decide_retry(bent, CRASH, failures, NOW, 0.5) == GiveUp()
    full = Failure(kind="out_of_memory", message="", retryable=True)
    assert decide_retry(bent, full, failures, NOW, 0.5) == decide_retry(policy, full, failures, NOW, 0.5)


@given(policies, st.integers(1, 200))
def test_what_cannot_work_is_not_tried_again(policy: RetryPolicy, failures: int) -> None:
    bad = Failure(kind="bad_input", message="", retryable=False)
    assert decide_retry(policy, bad, failures, NOW, 0.5) == GiveUp()


@given(policies, st.integers(1, 200))
def test_a_stopped_worker_hands_back_at_once_for_ever(policy: RetryPolicy, failures: int) -> None:
    stopped = Failure(kind="worker_stopped", message="", retryable=True)
    assert decide_retry(policy, stopped, failures, NOW, 0.5) == RetryAt(NOW)


@pytest.mark.parametrize("kind", ["lost_lease", "worker_crashed"])
def test_what_a_dead_worker_ran_is_taken_over_at_once_and_counts(kind: Literal["lost_lease", "worker_crashed"]) -> None:
    lost = Failure(kind=kind, message="", retryable=True)
    assert decide_retry(RetryPolicy(max_attempts=2), lost, 1, NOW, 0.5) == RetryAt(NOW)
    assert decide_retry(RetryPolicy(max_attempts=2), lost, 2, NOW, 0.5) == DeadLetter()
