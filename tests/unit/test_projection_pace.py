"""The pace of a projector: fresh where it can be, modest where it must."""

from __future__ import annotations

import time
from functools import partial
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.projections import pace
from bitinglip.projections.pace import AIM_S, BUSY, LESS_REST_S, MOST_BUSY_REST_S, MOST_REST_S, Pace, due_at, rest_s

SECONDS = st.floats(0, 10)
SHORT = AIM_S / 4
"""A transaction after which there is time for a rest."""


@given(SECONDS, SECONDS)
def test_a_rest_is_never_longer_than_told(took: float, waits: float) -> None:
    assert 0 <= rest_s(took, 0) <= MOST_REST_S
    assert 0 <= rest_s(took, waits) <= MOST_BUSY_REST_S


@given(st.floats(0, SHORT))
def test_half_of_the_events_are_seen_as_soon_as_is_aimed_at(took: float) -> None:
    rest = rest_s(took, 0)
    assert abs((rest + took) / 2 + took - AIM_S) < 1e-9


@given(SECONDS, st.floats(0, BUSY))
def test_it_takes_a_bounded_share_of_a_core(took: float, waits: float) -> None:
    rest = rest_s(took, waits)
    assert rest == MOST_REST_S or rest >= max(took - LESS_REST_S, 0.39 * took)


@given(st.floats(0.001, 10), st.floats(1.001, 100))
def test_where_others_wait_for_the_cores_it_rests_longer(took: float, more: float) -> None:
    assert rest_s(took, BUSY * more) >= rest_s(took, 0)


@given(SECONDS, SECONDS, SECONDS, SECONDS)
def test_what_comes_after_a_quiet_time_gathers_alone(wrote: float, rest: float, quiet: float, flush: float) -> None:
    came = wrote + rest + quiet
    assert due_at(came, flush, wrote, rest) == came + flush


@given(st.floats(0.001, 10), st.floats(0, 1), SECONDS)
def test_what_came_beside_a_transaction_waits_for_the_rest_alone(took: float, of_it: float, rest: float) -> None:
    assert due_at(0, of_it * took, took, rest) == took + rest


def test_it_rests_longer_once_many_transactions_have_waited_and_not_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0, 0.0, 0.0]  # by the clock, with a core, waiting for one

    def work(with_core_s: float, waiting_s: float) -> None:
        now[:] = now[0] + with_core_s + waiting_s, now[1] + with_core_s, now[2] + waiting_s

    monkeypatch.setattr(pace, "_waited_s", lambda: now[2])
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pace.time, "thread_time", lambda: now[1])
    paced = Pace()
    calm = [paced.timed(lambda: work(0.03, 0.003)) for _ in range(20)]
    once = [paced.timed(partial(work, 0.03, wait)) for wait in (0.09, 0.003, 0.003)]
    assert max(calm) < 0.05
    assert max(once) < MOST_REST_S
    busy = [paced.timed(lambda: work(0.03, 0.02)) for _ in range(20)]
    assert busy[-1] == MOST_BUSY_REST_S
    again = [paced.timed(lambda: work(0.03, 0.003)) for _ in range(20)]
    assert again[-1] == pytest.approx(calm[-1])


def test_work_is_done_and_timed_in_its_own_thread() -> None:
    def work() -> None:
        until = time.thread_time() + 0.4
        while time.thread_time() < until:
            pass

    assert Pace().timed(work) == MOST_REST_S  # one that waited tells too little to rest longer


def test_a_failure_is_the_callers() -> None:
    def work() -> NoReturn:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Pace().timed(work)
