"""Passes side by side: each is run once, none is waited for that could begin, and what fails is told."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.lanes import LaneRun, Lanes, lanes_on

TWO = Lanes(2, 1, 2)
LONG_S = 20.0


class Numbers:
    """Passes over numbers; `during` is what one does."""

    def __init__(self, waiting: list[int], during: Callable[[int], None] = lambda number: None) -> None:
        self.waiting = waiting
        self.during = during
        self.finished: list[int] = []
        self.threads: dict[int, int] = {}
        self._deciding = threading.Lock()

    def take(self, free: int) -> int | None:
        assert free > 0
        with self._alone():
            return self.waiting.pop(0) if self.waiting else None

    def more(self) -> bool:
        return bool(self.waiting)

    def run(self, taken: int) -> int:
        self.threads[taken] = torch.get_num_threads()
        assert torch.is_inference_mode_enabled()
        self.during(taken)
        return taken

    def finish(self, taken: int, result: int) -> None:
        assert taken == result
        with self._alone():
            self.finished.append(result)

    def _alone(self) -> threading.Lock:
        assert not self._deciding.locked()
        return self._deciding


@pytest.fixture(autouse=True)
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@given(st.integers(0, 40), st.integers(1, 5))
def test_each_pass_is_run_and_finished_once(passes: int, lanes: int) -> None:
    numbers = Numbers(list(range(passes)))
    LaneRun(Lanes(lanes, 1, lanes), numbers).until_done()
    assert sorted(numbers.finished) == list(range(passes))
    assert all(count == 1 for number, count in numbers.threads.items() if number != passes - 1)


def test_one_that_is_alone_has_all_threads_and_the_caller_has_them_again() -> None:
    numbers = Numbers([7])
    LaneRun(TWO, numbers).until_done()
    assert numbers.threads == {7: 2}
    both = threading.Barrier(2)
    numbers = Numbers([1, 2], lambda _: void(both.wait(LONG_S)))
    LaneRun(TWO, numbers).until_done()
    assert numbers.threads == {1: 1, 2: 1}
    assert torch.get_num_threads() == 2


def test_what_comes_meanwhile_goes_to_the_lane_that_is_idle() -> None:
    third = threading.Event()

    def during(number: int) -> None:
        if number == 0:
            assert third.wait(LONG_S), "the other lane never ran what came"
        if number == 1:
            threading.Timer(0.1, come).start()  # by then its lane is idle
        if number == 3:
            third.set()

    def come() -> None:
        numbers.waiting.append(3)
        run.tell()

    numbers = Numbers([0, 1], during)
    run = LaneRun(TWO, numbers)
    run.until_done()
    assert sorted(numbers.finished) == [0, 1, 3]


def test_nothing_runs_beside_one_that_has_all_threads() -> None:
    running = threading.Semaphore(1)

    def during(number: int) -> None:
        if number == 0:
            numbers.waiting += [1, 2]
            run.tell()
            assert running.acquire(blocking=False)
            threading.Event().wait(0.1)
            running.release()
        else:
            assert number in numbers.threads
            assert 0 in numbers.finished

    numbers = Numbers([0], during)
    run = LaneRun(TWO, numbers)
    run.until_done()
    assert numbers.threads == {0: 2, 1: 1, 2: 2} or numbers.threads == {0: 2, 1: 1, 2: 1}


def test_the_first_failure_is_raised_once_the_pass_beside_it_is_over() -> None:
    failed, over = threading.Event(), list[int]()

    def during(number: int) -> None:
        if number == 1:
            failed.set()
            raise ValueError("no")
        assert failed.wait(LONG_S)
        over.append(number)

    numbers = Numbers([0, 1, 2, 3, 4], during)
    with pytest.raises(ValueError, match="no"):
        LaneRun(TWO, numbers).until_done()
    assert set(over) <= {0, 2}
    assert 0 in over
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "lanes"), [(1, (1, 1)), (2, (2, 1)), (8, (8, 1)), (12, (6, 2)), (16, (8, 2))])
def test_a_cpu_has_a_lane_a_thread_up_to_a_number_and_a_card_one(threads: int, lanes: tuple[int, int]) -> None:
    torch.set_num_threads(threads)
    assert lanes_on(torch.device("cpu")) == Lanes(*lanes, threads)
    assert lanes_on(torch.device("cuda")) == Lanes(1, threads, threads)


def void(_: object) -> None:
    """Take what nobody wants."""
