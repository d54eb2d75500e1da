"""What an attempt took of a card's power."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.energy import STALE_S, EnergyMeter


def test_an_attempt_alone_takes_what_the_card_draws() -> None:
    meter = EnergyMeter()
    meter.tell(100.0, 0.0)
    meter.begin("a", 1.0)
    meter.tell(200.0, 2.0)
    assert meter.end("a", 2.5) == 200.0
    assert not meter.busy


def test_attempts_that_run_together_share_alike() -> None:
    meter = EnergyMeter()
    meter.tell(100.0, 0.0)
    meter.begin("a", 0.0)
    meter.begin("b", 1.0)
    assert meter.end("a", 3.0) == 200.0
    assert meter.end("b", 4.0) == 200.0


def test_a_first_reading_counts_for_what_has_just_begun() -> None:
    meter = EnergyMeter()
    meter.begin("a", 100.0)
    meter.tell(50.0, 100.5)
    assert meter.end("a", 101.0) == 50.0


@pytest.mark.parametrize("power_w", [None, 80.0])
def test_without_a_power_or_with_an_old_one_nothing_is_known(power_w: float | None) -> None:
    meter = EnergyMeter()
    meter.tell(power_w, 0.0)
    meter.begin("a", 1.0)
    assert meter.end("a", 2.0 + STALE_S) is None
    assert meter.end("a", 3.0 + STALE_S) is None


def test_a_gap_in_what_is_told_spoils_only_those_who_ran_then() -> None:
    meter = EnergyMeter()
    meter.tell(10.0, 0.0)
    meter.begin("a", 0.0)
    meter.tell(None, 1.0)
    meter.tell(None, 2.0)
    meter.tell(10.0, 2.5)
    meter.begin("b", 3.0)
    assert meter.end("a", 4.0) is None
    assert meter.end("b", 4.0) == 5.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.01, 5), st.floats(1, 300)), min_size=1, max_size=20))
def test_nothing_is_shared_twice(steps: list[tuple[str, float, float]]) -> None:
    meter, now_s, drawn_j, power_w = EnergyMeter(), 0.0, 0.0, 100.0
    meter.tell(power_w, now_s)
    running: set[str] = set()
    shares: list[float | None] = []
    for task_id, pause_s, told_w in steps:
        now_s += pause_s
        drawn_j += power_w * pause_s if running else 0.0
        if task_id in running:
            shares.append(meter.end(task_id, now_s))
        else:
            meter.begin(task_id, now_s)
        running ^= {task_id}
        meter.tell(told_w, now_s)
        power_w = told_w
    shares += [meter.end(task_id, now_s) for task_id in running]
    assert sum(share or 0.0 for share in shares) == pytest.approx(drawn_j, abs=0.1)
    assert None not in shares
