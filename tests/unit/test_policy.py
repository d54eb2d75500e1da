"""What a worker does next, by property: lanes, shares, affinity, requirements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.task import LANES
from bitinglip.workers.fairness import WEIGHTS
from bitinglip.workers.loading import Order, Plan
from bitinglip.workers.policy import MOST_ASKED, Load, Pull, Wait, after_service, decide
from bitinglip.workers.view import GIB, CardView, Held, ModelView, Requires, RouteView, WorkerView

Key = tuple[str, str, str]


def view(
    *models: str,
    loaded: frozenset[str] = frozenset(),
    idle: bool = False,
    shares: tuple[str, ...] = ("",),
    plan: Plan | None = None,
) -> WorkerView:
    return WorkerView(
        routes={m: tuple(RouteView(lane, m, share) for lane in LANES for share in shares) for m in models},
        card=CardView("w", loaded=tuple(Held(reference) for reference in sorted(loaded))),
        models={m: ModelView(m, load_s=10.0) for m in models},
        loaded=loaded,
        idle=idle,
        plan=plan,
    )


def key(route: RouteView) -> Key:
    return route.lane, route.share, route.reference


def serve(seen: WorkerView, waiting: Mapping[Key, int], rounds: int) -> Counter[Key]:
    """Play a worker that serves one task a round from the first route that has work."""
    left, served = dict(waiting), Counter[Key]()
    for _ in range(rounds):
        step = decide(seen)
        assert isinstance(step, Pull)
        empty: list[RouteView] = []
        for route in step.routes:
            if left.get(key(route), 0):
                left[key(route)] -= 1
                served[key(route)] += 1
                seen = after_service(seen, route, 1, empty)
                break
            empty.append(route)
    return served


def by_lane(served: Mapping[Key, int]) -> dict[str, int]:
    return {lane: sum(count for (of, _, _), count in served.items() if of == lane) for lane in LANES}


def everything(seen: WorkerView, count: int = 10_000) -> dict[Key, int]:
    return {key(route): count for routes in seen.routes.values() for route in routes}


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_lanes_share_by_weight_and_none_starves() -> None:
    seen = view("m")
    assert by_lane(serve(seen, everything(seen), 2_100)) == {lane: 100 * WEIGHTS[lane] for lane in LANES}


def test_an_empty_lane_saves_nothing_up() -> None:
    seen = view("m")
    batch, normal, interactive = (
        next(route for route in seen.routes["m"] if route.lane == lane) for lane in ("batch", "normal", "interactive")
    )
    for _ in range(1_000):
        seen = after_service(seen, normal, 1, [interactive, batch])
    served = by_lane(serve(seen, everything(seen), 210))
    assert served["batch"] <= 11
    assert served["normal"] >= 38


def test_the_urgent_lane_comes_first_among_equals() -> None:
    step = decide(view("m"))
    assert [route.lane for route in step.routes] == ["interactive", "normal", "batch"]


# --- shares and models ------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(0, 5), st.integers(20, 200))
def test_shares_in_a_lane_deviate_by_one_task(shares: int, greedy: int, rounds: int) -> None:
    seen = view("m", shares=tuple(f"k{n}" for n in range(shares)))
    waiting = {
        key(route): 100_000 if route.share == f"k{greedy % shares}" else 1_000
        for route in seen.routes["m"]
        if route.lane == "normal"
    }
    served = serve(seen, waiting, rounds)
    counts = [served["normal", f"k{n}", "m"] for n in range(shares)]
    assert max(counts) - min(counts) <= 1


def test_a_share_of_greater_weight_gets_more() -> None:
    seen = replace(view("m", shares=("a", "b")), share_weights={"a": 3.0})
    served = serve(seen, {("normal", share, "m"): 10_000 for share in "ab"}, 400)
    assert served["normal", "a", "m"] == 300


def test_a_share_that_comes_back_has_saved_nothing_up() -> None:
    seen = view("m", shares=("a", "b"))
    ours, other = (RouteView("normal", "m", share) for share in "ab")
    for _ in range(500):
        seen = after_service(seen, ours, 1, [other])
    served = serve(seen, {("normal", share, "m"): 10_000 for share in "ab"}, 20)
    assert abs(served["normal", "a", "m"] - served["normal", "b", "m"]) <= 1


def test_two_models_in_memory_take_turns() -> None:
    seen = view("a", "b", loaded=frozenset({"a", "b"}), plan=Plan())
    served = serve(seen, {("normal", "", model): 10_000 for model in "ab"}, 100)
    assert served["normal", "", "a"] == served["normal", "", "b"] == 50


@given(
    st.lists(st.tuples(st.sampled_from(LANES), st.integers(1, 64), st.sets(st.sampled_from(LANES))), max_size=50),
    st.booleans(),
)
def test_without_a_plan_every_route_is_always_asked(history: list[tuple[str, int, set[str]]], idle: bool) -> None:
    seen = view("a", "b")
    for lane, tasks, empty in history:
        without = [RouteView(other, "a") for other in empty - {lane}]
        seen = after_service(seen, RouteView(lane, "a"), tasks, without)
    step = decide(replace(seen, idle=idle))
    assert isinstance(step, Wait if idle else Pull)
    assert sorted(map(str, step.routes)) == sorted(str(route) for routes in seen.routes.values() for route in routes)


@given(st.sets(st.sampled_from("abcd"), min_size=1), st.booleans())
def test_a_card_asks_for_what_it_holds_alone(loaded: set[str], idle: bool) -> None:
    seen = view(*"abcd", loaded=frozenset(loaded), idle=idle, plan=Plan(waits={"v": frozenset("abcd")}))
    step = decide(seen)
    assert isinstance(step, Wait if idle else Pull)
    assert {route.reference for route in step.routes} == loaded


def test_a_loaded_model_comes_before_one_that_is_not() -> None:
    step = decide(view("a", "b", loaded=frozenset({"b"})))
    assert [route.reference for route in step.routes if route.lane == "normal"] == ["b", "a"]


def test_an_idle_card_waits_for_what_the_plan_gives_it() -> None:
    step = decide(view(*"abc", loaded=frozenset("a"), idle=True, plan=Plan(waits={"w": frozenset("c")})))
    assert isinstance(step, Wait)
    assert {route.reference for route in step.routes} == {"a", "c"}


def test_what_takes_no_time_to_load_is_run_by_whoever_is_free() -> None:
    step = decide(view(*"abc", loaded=frozenset("a"), plan=Plan(weightless=frozenset("b"))))
    assert isinstance(step, Pull)
    assert {route.reference for route in step.routes} == {"a", "b"}


def test_of_many_routes_those_known_to_be_empty_are_not_asked() -> None:
    shares = tuple(f"k{n}" for n in range(MOST_ASKED))
    seen = view("a", loaded=frozenset("a"), shares=shares, plan=Plan())
    known = tuple(replace(route, depth=int(route.share == "k3")) for route in seen.routes["a"])
    step = decide(replace(seen, routes={"a": known}))
    assert isinstance(step, Pull)
    assert {route.share for route in step.routes} == {"k3"}
    assert len(step.empty) == len(known) - len(LANES)


# --- orders -----------------------------------------------------------------------------------------------------------


def test_an_order_for_an_idle_card_is_void_once_it_has_work() -> None:
    plan = Plan(loads={"w": Order("b")})
    busy, idle = (decide(view("a", "b", loaded=frozenset("a"), idle=idle, plan=plan)) for idle in (False, True))
    assert isinstance(busy, Pull)
    assert isinstance(idle, Load)
    assert (idle.reference, {route.reference for route in idle.routes}) == ("b", {"b"})


def test_a_card_that_holds_nothing_is_idle_from_the_start() -> None:
    step = decide(view("a", "b", plan=Plan(loads={"w": Order("b")})))
    assert isinstance(step, Load)


def test_an_order_to_switch_is_obeyed_by_a_busy_card_which_drops_the_least_recently_used() -> None:
    seen = view(*"abc", loaded=frozenset("ab"), plan=Plan(loads={"w": Order("c", switches=True)}))
    step = decide(seen)
    assert isinstance(step, Load)
    assert (step.reference, step.evicts) == ("c", ("a",))


def test_pinned_models_are_loaded_when_idle_and_never_dropped() -> None:
    seen = view(*"abc", loaded=frozenset("a"), idle=True, plan=Plan())
    pinned = replace(seen.card, pinned=frozenset("ab"))
    step = decide(replace(seen, card=pinned))
    assert isinstance(step, Load)
    assert (step.reference, step.evicts) == ("b", ())
    full = replace(pinned, loaded=(Held("a"), Held("b")))
    ordered = replace(seen, card=full, loaded=frozenset("ab"), plan=Plan(loads={"w": Order("c")}))
    assert isinstance(decide(ordered), Wait)


@given(st.floats(0, 48), st.sets(st.sampled_from(["eu", "fast"])), st.booleans(), st.booleans())
def test_work_goes_to_no_card_that_lacks_what_it_requires(
    vram: float, labels: set[str], planned: bool, idle: bool
) -> None:
    requires = Requires(vram, frozenset(labels))
    seen = view("a", loaded=frozenset("a"), idle=idle, plan=Plan() if planned else None)
    routes = (*seen.routes["a"], *(replace(route, requires=requires) for route in seen.routes["a"]))
    card = replace(seen.card, total_bytes=24 * GIB, labels=frozenset({"eu"}))
    step = decide(replace(seen, routes={"a": routes}, card=card))
    meets = vram <= 24 and labels <= {"eu"}
    assert any(route.requires == requires for route in step.routes) == (meets or requires == Requires())
