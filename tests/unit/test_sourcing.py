"""When the queue's leader is asked to step down: its source is silent, and it has had time to hear of it."""

from __future__ import annotations

import pytest

from bitinglip.events.sourcing import SETTLE_S, is_silent

SECOND_NS = 1_000_000_000


@pytest.mark.parametrize(
    ("age_ns", "led_s", "silent"),
    [
        (SECOND_NS, 0.0, False),
        (3 * SECOND_NS, 0.0, True),
        (-1, 0.5, False),
        (-1, SETTLE_S + 0.1, True),
    ],
)
def test_a_silent_source(age_ns: int, led_s: float, silent: bool) -> None:
    assert is_silent({"sources": [{"name": "TASKS", "active": age_ns}]}, led_s) == silent


def test_a_stream_that_tells_of_no_source_is_left_alone() -> None:
    assert not is_silent({}, 60)
