"""The pace of a projector: fresh where it can be, modest where it must."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.projections.pace import AIM_S, BUSY, LEAST_REST, MOST_BUSY_REST_S, MOST_REST_S, rest_s, timed

SECONDS = st.floats(0, 10)
SHORT = AIM_S / 4
"""A transaction after which there is time for a rest."""


@given(SECONDS, SECONDS, SECONDS)
def test_a_rest_is_never_longer_than_told(took: float, worked: float, waited: float) -> None:
    assert 0 <= rest_s(took, worked, 0) <= MOST_REST_S
    assert 0 <= rest_s(took, worked, waited) <= MOST_BUSY_REST_S


@given(st.floats(0, SHORT))
def test_half_of_the_events_are_seen_as_soon_as_is_aimed_at(took: float) -> None:
    rest = rest_s(took, took, 0)
    assert abs((rest + took) / 2 + took - AIM_S) < 1e-9


@given(st.floats(0, 10), st.floats(0, BUSY))
def test_it_takes_a_bounded_share_of_a_core(took: float, part: float) -> None:
    rest = rest_s(took, took, part * took)
    assert rest == MOST_REST_S or rest >= LEAST_REST * took


@given(st.floats(0.001, 10), st.floats(1.001, 100))
def test_where_others_wait_for_the_cores_it_rests_longer(worked: float, more: float) -> None:
    waited = worked * BUSY * more
    took = worked + waited
    assert rest_s(took, worked, waited) >= rest_s(took, took, 0)


def test_work_is_done_and_timed_in_its_own_thread() -> None:
    def work() -> None:
        until = time.thread_time() + 0.4
        while time.thread_time() < until:
            pass

    assert timed(work) in {MOST_REST_S, MOST_BUSY_REST_S}  # others may want this machine's cores now
