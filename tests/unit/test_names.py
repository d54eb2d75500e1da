"""One model under several names: it is loaded once, and every queue of it leads there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.events.task import LANES
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.names import Names
from bitinglip.workers.routebook import common_routes, name_in, regrouped, route_of, view_of, with_route
from bitinglip.workers.view import CardView, Held


def spec(reference: str, revision: str | None = "c1", path: str | None = "/m/c1", **more: object) -> ModelSpec:
    told = {"kind": "embedding", "reference": reference, "revision": revision, "path": path}
    return ModelSpec.model_validate(told | more)


PLAIN, PINNED, OLD = spec("org/m"), spec("org/m@c1"), spec("org/m@c0", "c0", "/m/c0")
SPECS = st.lists(
    st.builds(
        lambda name, at, path, quantize: spec(
            name if at is None else f"{name}@{at}", at or "c1", path, quantize=quantize
        ),
        st.sampled_from(["org/m", "org/n"]),
        st.sampled_from([None, "c0", "c1"]),
        st.sampled_from([None, "/a", "/b"]),
        st.sampled_from([None, "int8"]),
    ),
    unique_by=lambda model: model.reference,
)


@given(SPECS)
def test_names_are_one_if_nothing_tells_the_models_apart(models: list[ModelSpec]) -> None:
    names = Names(models)
    for one in models:
        assert names.of(names.of(one.reference)) == names.of(one.reference)
        assert len(names.of(one.reference)) <= len(one.reference)
        loaded = names.spec(one)
        assert loaded.model_copy(update={"reference": one.reference}) == one
        for other in models:
            same = one.path is not None and one.model_copy(update={"reference": other.reference}) == other
            assert (names.of(one.reference) == names.of(other.reference)) == (same or one is other)
    assert {each.reference for each in names.specs} == {names.of(each.reference) for each in models}


@given(SPECS, st.lists(st.tuples(st.sampled_from(["org/m", "org/m@c1", "org/n@c0"]), st.sampled_from(LANES))))
def test_a_queue_stays_the_one_it_is_whatever_its_model_is_called(
    models: list[ModelSpec], asked: list[tuple[str, str]]
) -> None:
    names = Names(models)
    routes = common_routes([model.reference for model in models], names)
    assert set(routes) == {names.of(model.reference) for model in models}
    wanted = {Route(lane, encode_queue(model.reference)) for model in models for lane in LANES}
    for reference, lane in asked:
        route = Route(lane, encode_queue(reference, WorkClass("team")))
        assert route_of(view_of(route, names)) == route
        routes = with_route(routes, route, CardView("w"), names)
        wanted |= {route} if names.of(reference) in routes else set()
    assert {route_of(view) for views in routes.values() for view in views} == wanted
    alone = regrouped([view for views in routes.values() for view in views], Names())
    assert {route_of(view) for views in alone.values() for view in views} == wanted
    assert all(view.reference == name_in(view) == name for name, views in alone.items() for view in views)


def test_the_plain_name_counts() -> None:
    names = Names([OLD, PINNED, PLAIN])
    assert [names.of(each) for each in ("org/m", "org/m@c1", "org/m@c0", "org/other")] == [
        "org/m", "org/m", "org/m@c0", "org/other",
    ]  # fmt: skip
    assert names.specs == [OLD, PLAIN]


def test_other_weights_are_another_model() -> None:
    for other in (spec("org/m@c1", quantize="int8"), spec("org/m@c1", "c2"), spec("org/m@c1", path="/other")):
        assert Names([PLAIN, other]).of("org/m@c1") == "org/m@c1"


def test_a_peer_that_calls_it_otherwise_has_it_once() -> None:
    held = (Held("org/m@c1", 7, 3.0), Held("org/m", 7, 2.0), Held("org/other", 1))
    card = CardView("w", loaded=held, loading="org/m@c1", pinned=frozenset({"org/m@c1"}))
    seen = Names([PLAIN, PINNED]).card(card)
    assert [(each.reference, each.taken_bytes) for each in seen.loaded] == [("org/m", 7), ("org/other", 1)]
    assert (seen.loading, seen.pinned) == ("org/m", frozenset({"org/m"}))
    assert Names().card(card) == card


def test_a_peer_that_alone_calls_it_by_its_plain_name_has_it_as_well() -> None:
    held, revisions = (Held("org/m", 7), Held("org/other", 1)), {"org/m": "c1", "org/other": "c1"}
    card = CardView("w", loaded=held, loading="org/m", pinned=frozenset({"org/m"}), revisions=revisions)
    seen = Names([PINNED, OLD]).card(card)
    assert [(each.reference, each.taken_bytes) for each in seen.loaded] == [("org/m@c1", 7), ("org/other", 1)]
    assert (seen.loading, seen.pinned) == ("org/m@c1", frozenset({"org/m@c1"}))
    assert Names([OLD]).card(card) == card
    assert Names([spec("org/m", "c0", "/m/c0"), OLD]).card(card) == card, "the plain name's queue is shared"
