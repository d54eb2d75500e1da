"""A thread whose work nobody waits for gives way, and no other one does."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitinglip.projections.background import NICE, give_way


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a niceness for each thread")
def test_a_thread_that_gives_way_and_what_it_starts_do() -> None:
    before = niceness()

    def both() -> tuple[int, int]:
        with ThreadPoolExecutor(1) as inner:
            return niceness(), inner.submit(niceness).result()

    with ThreadPoolExecutor(1, initializer=give_way) as thread, ThreadPoolExecutor(1) as other:
        assert thread.submit(both).result() == (min(before + NICE, 19), min(before + NICE, 19))
        assert other.submit(niceness).result() == before
    assert niceness() == before
