"""Who loads what, by property: one loader a model, nothing that does not fit, nobody forgotten."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.workers.loading import DWELL, WORTH, evicted, plan
from bitinglip.workers.policy import Load, decide
from bitinglip.workers.view import GIB, CardView, ClusterView, Held, ModelView, Requires, RouteView, WorkerView

MODELS = {f"m{n}": ModelView(f"m{n}", need_bytes=n * 3 * GIB, load_s=5.0 * n) for n in range(1, 7)}
NAMES = sorted(MODELS)


def routes_of(*routes: RouteView) -> dict[str, tuple[RouteView, ...]]:
    ordered = sorted(routes, key=lambda route: route.reference)
    return {name: tuple(some) for name, some in itertools.groupby(ordered, key=lambda route: route.reference)}


def work(reference: str, depth: int = 1, oldest_s: float = 1.0, task_s: float = 1.0) -> RouteView:
    return RouteView("normal", reference, depth=depth, oldest_s=oldest_s, task_s=task_s)


def cards(count: int, *loaded: str, idle: bool = True, **facts: object) -> tuple[CardView, ...]:
    held = tuple(Held(name, MODELS[name].need_bytes, 1000.0) for name in loaded)
    card = CardView("", budget_bytes=24 * GIB, total_bytes=24 * GIB, loaded=held, idle=idle)
    return tuple(replace(card, worker_id=f"w{n}", **facts) for n in range(count))


held = st.sets(st.sampled_from(NAMES), max_size=2).map(
    lambda names: tuple(Held(name, MODELS[name].need_bytes, 1000.0) for name in sorted(names))
)
a_card = st.builds(
    CardView,
    worker_id=st.just(""),
    labels=st.sets(st.sampled_from(["eu", "fast"])).map(frozenset),
    total_bytes=st.sampled_from([8, 16, 24, 48]).map(lambda gib: gib * GIB),
    loaded=held,
    loading=st.sampled_from([None, None, None, *NAMES]),
    idle=st.booleans(),
    idle_s=st.floats(0, 1000),
    pinned=st.sets(st.sampled_from(NAMES), max_size=1).map(frozenset),
    serves=st.none() | st.sets(st.sampled_from(NAMES)).map(frozenset),
)
some_cards = st.lists(a_card, max_size=12).map(
    lambda found: tuple(
        replace(card, worker_id=f"w{n}", budget_bytes=int((card.total_bytes or 0) * 0.9))
        for n, card in enumerate(found)
    )
)
a_route = st.builds(
    RouteView,
    lane=st.sampled_from(["interactive", "normal", "batch"]),
    reference=st.sampled_from(NAMES),
    share=st.sampled_from(["", "k1"]),
    requires=st.builds(Requires, st.sampled_from([0.0, 16.0, 40.0]), st.sets(st.sampled_from(["eu"])).map(frozenset)),
    depth=st.none() | st.integers(0, 200),
    oldest_s=st.floats(0, 1000),
    task_s=st.floats(0, 30),
)
clusters = st.builds(
    ClusterView,
    routes=st.lists(a_route, max_size=15).map(lambda found: routes_of(*found)),
    models=st.just(MODELS),
    cards=some_cards,
)


def steps(cluster: ClusterView) -> dict[str, Load]:
    """What every card decides for itself, each with a plan that it made of the same facts."""
    found: dict[str, Load] = {}
    for card in cluster.cards:
        names = frozenset(held.reference for held in card.loaded)
        own = replace(card, pinned=frozenset())
        seen = WorkerView(cluster.routes, own, loaded=names, idle=card.idle, models=cluster.models, plan=plan(cluster))
        step = decide(seen)
        if isinstance(step, Load):
            found[card.worker_id] = step
    return found


@given(clusters)
def test_nothing_is_loaded_that_does_not_fit_and_nothing_pinned_is_dropped(cluster: ClusterView) -> None:
    for card in cluster.cards:
        order = plan(cluster).loads.get(card.worker_id)
        if order is None:
            continue
        drops = evicted(card, MODELS[order.reference])
        assert drops is not None
        assert not set(drops) & card.pinned
        kept = [held for held in card.loaded if held.reference not in drops]
        assert sum(held.taken_bytes for held in kept) + MODELS[order.reference].need_bytes <= (card.budget_bytes or 0)
        assert len(kept) < card.most_loaded
        assert card.serves is None or order.reference in card.serves


@given(clusters)
def test_a_load_is_for_work_whose_requirements_the_card_meets(cluster: ClusterView) -> None:
    by_id = {card.worker_id: card for card in cluster.cards}
    for worker_id, order in plan(cluster).loads.items():
        assert any(route.depth and by_id[worker_id].meets(route.requires) for route in cluster.routes[order.reference])


@given(clusters)
def test_no_card_that_loads_is_told_to_load_and_none_loads_what_it_has(cluster: ClusterView) -> None:
    by_id = {card.worker_id: card for card in cluster.cards}
    for worker_id, order in plan(cluster).loads.items():
        assert by_id[worker_id].loading is None
        assert not by_id[worker_id].holds(order.reference)


@given(clusters, st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_in_which_cards_are_told(cluster: ClusterView, random: object) -> None:
    shuffled = list(cluster.cards)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert plan(replace(cluster, cards=tuple(shuffled))) == plan(cluster)


@given(st.integers(1, 40), st.sampled_from(NAMES[1:]), st.integers(0, 3))
def test_a_model_that_nobody_has_gets_exactly_one_loader(count: int, name: str, busy: int) -> None:
    idle = cards(count)
    others = tuple(replace(card, worker_id=f"b{card.worker_id}") for card in cards(busy, "m1", idle=False))
    cluster = ClusterView(routes_of(work(name)), MODELS, (*idle, *others))
    assert [step.reference for step in steps(cluster).values()] == [name]


@given(st.integers(1, 40), st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
def test_of_several_models_each_gets_one_as_far_as_cards_go(count: int, names: list[str]) -> None:
    cluster = ClusterView(routes_of(*map(work, names)), MODELS, cards(count))
    loaded = [step.reference for step in steps(cluster).values()]
    assert len(set(loaded)) == len(loaded) == min(count, len(names))


def test_a_model_that_is_being_loaded_gets_no_second_loader() -> None:
    first, *others = cards(9)
    cluster = ClusterView(routes_of(work("m2")), MODELS, (replace(first, loading="m2"), *others))
    assert steps(cluster) == {}


def test_work_that_an_idle_holder_is_about_to_take_is_no_reason_to_load() -> None:
    holder, *others = cards(9)
    held = replace(holder, loaded=(Held("m2", MODELS["m2"].need_bytes, 1.0),))
    for depth, loaders in ((1, 0), (2, 1)):
        cluster = ClusterView(routes_of(work("m2", depth, task_s=500.0)), MODELS, (held, *others))
        assert len(steps(cluster)) == loaders


@given(st.integers(1, 500), st.integers(0, 5))
def test_the_number_of_loaders_grows_with_the_work_that_waits(depth: int, holding: int) -> None:
    busy = tuple(replace(card, worker_id=f"b{card.worker_id}") for card in cards(holding, "m2", idle=False))
    cluster = ClusterView(routes_of(work("m2", depth)), MODELS, (*cards(40), *busy))
    wanted = max(1, int(depth / (WORTH * MODELS["m2"].load_s)))
    assert len(steps(cluster)) == max(0, min(40, wanted - holding))


def test_room_is_taken_before_anything_is_dropped_and_the_longest_idle_card_drops_first() -> None:
    used, long, free = cards(3, "m1", "m2")
    free, long = replace(free, loaded=free.loaded[:1]), replace(long, idle_s=500.0)
    cluster = ClusterView(routes_of(work("m3")), MODELS, (used, long, free))
    assert list(plan(cluster).loads) == [free.worker_id]
    assert list(plan(replace(cluster, cards=(used, long))).loads) == [long.worker_id]


def test_a_small_card_is_taken_before_a_large_one() -> None:
    large, small = replace(cards(1)[0], worker_id="a", budget_bytes=80 * GIB), replace(cards(1)[0], worker_id="b")
    for name in NAMES:
        assert list(plan(ClusterView(routes_of(work(name)), MODELS, (large, small))).loads) == ["b"]


# --- busy cards -------------------------------------------------------------------------------------------------------


def test_a_busy_card_stays_until_another_model_has_waited_longer_than_its_load() -> None:
    (busy,) = cards(1, "m1", idle=False)
    for oldest_s, switches in ((19.0, False), (21.0, True)):
        cluster = ClusterView(routes_of(work("m1", 100), work("m4", oldest_s=oldest_s)), MODELS, (busy,))
        assert bool(steps(cluster)) == switches


def test_a_busy_card_stays_until_its_last_load_has_paid() -> None:
    (busy,) = cards(1, "m1", idle=False)
    for held_s, switches in ((DWELL * 5 - 1, False), (DWELL * 5, True)):
        card = replace(busy, loaded=(replace(busy.loaded[0], held_s=held_s),))
        cluster = ClusterView(routes_of(work("m1", 100), work("m4", oldest_s=500.0)), MODELS, (card,))
        assert bool(steps(cluster)) == switches


def test_the_urgent_lane_is_less_patient() -> None:
    (busy,) = cards(1, "m1", idle=False)
    for lane, switches in (("interactive", True), ("normal", False), ("batch", False)):
        waiting = replace(work("m4", oldest_s=6.0), lane=lane)
        assert bool(steps(ClusterView(routes_of(work("m1", 9), waiting), MODELS, (busy,)))) == switches


def test_of_busy_cards_the_one_whose_own_work_waits_least_switches() -> None:
    (first,), (second,) = cards(1, "m1", idle=False), cards(1, "m2", idle=False)
    cluster = ClusterView(
        routes_of(work("m1", 9, 40.0), work("m2", 9, 3.0), work("m4", oldest_s=30.0)),
        MODELS,
        (first, replace(second, worker_id="x")),
    )
    assert list(steps(cluster)) == ["x"]


def test_idle_cards_share_the_models_that_nobody_has_and_each_is_waited_for_by_one() -> None:
    cluster = ClusterView({}, MODELS, cards(10))
    waits = plan(cluster).waits
    assert sorted(name for names in waits.values() for name in names) == NAMES
    held = ClusterView({}, MODELS, (*cards(10), replace(cards(1, "m1")[0], worker_id="h")))
    assert sorted(name for names in plan(held).waits.values() for name in names) == NAMES[1:]


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_nobody_starves(models: int, count: int, task_s: int) -> None:
    """A few cards, more models than they can hold, each always with work: everyone's turn comes within a bound."""
    names = NAMES[:models]
    held: dict[str, tuple[Held, ...]] = {f"w{n}": () for n in range(count)}
    loading: dict[str, tuple[str, float]] = {}
    since = dict.fromkeys(names, 0.0)
    longest = 0.0
    for now in range(900):
        for worker, (name, until) in list(loading.items()):
            if now >= until:
                del loading[worker]
                held[worker] = (Held(name, MODELS[name].need_bytes, float(now)),)
        for worker, some in held.items():
            if worker not in loading:
                for each in some:
                    since[each.reference] = now
        longest = max(longest, *(now - since[name] for name in names))
        view = ClusterView(
            routes_of(*(work(name, 1_000, now - since[name], float(task_s)) for name in names)),
            MODELS,
            tuple(
                replace(
                    card,
                    most_loaded=1,
                    loaded=tuple(
                        Held(each.reference, each.taken_bytes, now - each.held_s) for each in held[card.worker_id]
                    ),
                    loading=loading[card.worker_id][0] if card.worker_id in loading else None,
                    idle=not held[card.worker_id],
                )
                for card in cards(count)
            ),
        )
        for worker, order in plan(view).loads.items():
            held[worker] = ()
            loading[worker] = (order.reference, now + MODELS[order.reference].load_s)
    slowest = MODELS[names[-1]].load_s
    assert longest <= (models + 1) * (DWELL + 2) * slowest
