"""Progress is coalesced: nothing of it is lost, and it is told no more often than the rates allow."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.ticks import Ticks

STEP_S = 0.01


@given(tasks=st.integers(1, 40), steps=st.integers(1, 200), per_s=st.sampled_from([5.0, 20.0]), total=st.just(80.0))
def test_the_rates_bound_what_is_told_and_every_text_is_told_once(
    tasks: int, steps: int, per_s: float, total: float
) -> None:
    ticks = Ticks(per_s, total)
    told: dict[str, list[str]] = {str(task): [] for task in range(tasks)}
    times: dict[str, list[float]] = {name: [] for name in told}
    for step in range(steps):
        now = step * STEP_S
        for name in told:
            ticks.add(now, name, step + 1, steps, "token", f"{step},")
        for progress in ticks.due(now):
            told[progress.task_id].append(progress.text or "")
            times[progress.task_id].append(now)
    for name, texts in told.items():
        kept = ticks.end(steps * STEP_S, name)
        texts.append((kept.text or "") if kept else "")
        assert "".join(texts) == "".join(f"{step}," for step in range(steps))
    pause_s = max(1 / per_s, tasks / total)
    for moments in times.values():
        assert moments[0] == 0.0, "the first is told at once"
        assert all(later - earlier >= pause_s - 1e-9 for earlier, later in pairwise(moments))
    assert sum(map(len, times.values())) <= tasks * (1 + steps * STEP_S / pause_s)


def test_a_task_that_ends_leaves_its_share_to_the_others() -> None:
    ticks = Ticks(20.0, 20.0)
    for name in ("a", "b"):
        ticks.add(0.0, name, 1, 9, "token", "x")
    ticks.due(0.0)
    ticks.end(0.0, "b")
    ticks.add(0.1, "a", 2, 9, "token", "y")
    assert [progress.text for progress in ticks.due(0.1)] == ["y"]
    ticks.add(0.1, "a", 3, 9, "token", "z")
    assert ticks.next_due() == 0.1 + 1 / 20
