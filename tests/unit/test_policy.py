"""The scheduling policy, by property and by a small simulation."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.task import LANES
from bitinglip.workers.policy import WEIGHTS, Pull, Wait, after_service, decide
from bitinglip.workers.view import LaneView, RouteView, WorkerView


def view(*models: str, loaded: frozenset[str] = frozenset(), idle: bool = False) -> WorkerView:
    return WorkerView(
        routes=tuple(RouteView(lane, model) for model in models for lane in LANES),
        lanes={lane: LaneView() for lane in LANES},
        loaded=loaded,
        idle=idle,
    )


def serve(seen: WorkerView, waiting: dict[str, int], rounds: int) -> Counter[str]:
    """Play a worker that serves one task a round from the first route that has work."""
    served: Counter[str] = Counter()
    for _ in range(rounds):
        step = decide(seen)
        assert isinstance(step, Pull)
        empty: set[str] = set()
        for route in step.routes:
            if waiting[route.lane]:
                waiting[route.lane] -= 1
                served[route.lane] += 1
                seen = after_service(seen, route.lane, 1, frozenset(empty))
                break
            empty.add(route.lane)
    return served


def test_lanes_share_by_weight_and_none_starves() -> None:
    served = serve(view("m"), dict.fromkeys(LANES, 10_000), 2_100)
    assert {lane: served[lane] for lane in LANES} == {lane: 100 * WEIGHTS[lane] for lane in LANES}


def test_an_empty_lane_saves_nothing_up() -> None:
    seen = view("m")
    for _ in range(1_000):
        seen = after_service(seen, "normal", 1, frozenset({"interactive", "batch"}))
    served = serve(seen, dict.fromkeys(LANES, 10_000), 210)
    assert served["batch"] <= 11
    assert served["normal"] >= 38


def test_the_urgent_lane_comes_first_among_equals() -> None:
    step = decide(view("m"))
    assert [route.lane for route in step.routes] == ["interactive", "normal", "batch"]


def test_a_loaded_model_comes_before_one_that_is_not() -> None:
    step = decide(view("a", "b", loaded=frozenset({"b"})))
    assert [route.reference for route in step.routes if route.lane == "normal"] == ["b", "a"]


def test_an_idle_worker_waits_on_all_its_routes() -> None:
    step = decide(view("a", "b", idle=True))
    assert isinstance(step, Wait)
    assert len(step.routes) == 6


@given(
    st.lists(st.tuples(st.sampled_from(LANES), st.integers(1, 64), st.sets(st.sampled_from(LANES))), max_size=50),
    st.booleans(),
)
def test_every_route_is_always_asked(history: list[tuple[str, int, set[str]]], idle: bool) -> None:
    seen = view("a", "b")
    for lane, tasks, empty in history:
        seen = after_service(seen, lane, tasks, frozenset(empty - {lane}))
    step = decide(replace(seen, idle=idle))
    assert sorted(map(str, step.routes)) == sorted(map(str, seen.routes))
