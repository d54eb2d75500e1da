"""When the queue's leader is asked to step down: its source is silent, and it has had time to hear of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitinglip.events.sourcing import SETTLE_S, is_silent, led_s

SECOND_NS = 1_000_000_000
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def told(led_for_s: float, *ages_ns: int) -> dict[str, Any]:
    """Return what the server tells of a stream: since when it has its leader, and when its sources were heard."""
    since = (NOW - timedelta(seconds=led_for_s)).isoformat(timespec="microseconds").replace("+00:00", "789Z")
    sources = [{"name": "TASKS", "active": age_ns} for age_ns in ages_ns]
    return {"ts": NOW.isoformat(), "cluster": {"leader_since": since}, "sources": sources}


@pytest.mark.parametrize(
    ("age_ns", "queue_led_s", "log_led_s", "silent"),
    [
        (SECOND_NS, 100.0, 200.0, False),  # as ever
        (SECOND_NS, 200.0, 100.0, False),  # it was found again
        (3 * SECOND_NS, 100.0, 200.0, True),  # a sign of life is due each second
        (SECOND_NS, 100.0, 0.5, True),  # that sign was the former leader's
        (SECOND_NS, 1.2, 1.1, False),  # it asked when the log had its leader
        (-1, 0.5, 100.0, False),  # it may yet hear
        (-1, SETTLE_S + 0.1, 100.0, True),
        (-1, 1.0, 0.5, True),  # it asked while nobody could answer
        (-1, 1.0, 0.9, False),
    ],
)
def test_a_silent_source(age_ns: int, queue_led_s: float, log_led_s: float, silent: bool) -> None:
    assert is_silent(told(queue_led_s, age_ns), log_led_s) == silent


def test_a_stream_that_tells_of_no_source_is_left_alone() -> None:
    assert not is_silent(told(60), 1)
    assert not is_silent({}, 1)


def test_a_stream_tells_for_how_long_it_has_been_led() -> None:
    assert led_s(told(2.5)) == pytest.approx(2.5, abs=1e-3)
    assert led_s({"ts": NOW.isoformat(), "cluster": {"leader": None}}) == 0
