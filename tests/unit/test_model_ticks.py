"""How many bytes come in a second: of the last seconds, and none where that cannot be told."""

from __future__ import annotations

from bitinglip.workers.modelticks import PACE_S, Pace


def test_the_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    assert pace.of(0.0, 0) is None
    assert pace.of(1.0, 100) == 100
    for second in range(2, 20):
        pace.of(float(second), 100 * second)
    fast = [pace.of(19.0 + second, 1900 + 1000 * second) for second in range(1, int(PACE_S) + 2)]
    assert fast[-1] == 1000
    assert fast[0] is not None
    assert 100 < fast[0] < 1000


def test_nothing_that_comes_has_no_pace() -> None:
    pace = Pace()
    pace.of(0.0, 50)
    assert pace.of(1.0, 50) is None
    assert pace.of(1.0, 60) == 10
    assert pace.of(2.0, 0) is None  # a file that came wrong begins anew
