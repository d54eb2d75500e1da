"""What is dropped for room, by property: enough, nothing that is kept, nothing in vain; and in which order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.models.eviction import Stored, evictions

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def stored(name: str, size: int, idle_s: float = 60.0, *, pinned: bool = False, in_use: bool = False) -> Stored:
    return Stored(
        reference=name,
        revision="r",
        files={"d": size},
        last_used=NOW - timedelta(seconds=idle_s),
        pinned=pinned,
        in_use=in_use,
    )


def taken(each: Iterable[Stored]) -> int:
    return sum({(one.reference, digest): size for one in each for digest, size in one.files.items()}.values())


@st.composite
def stores(draw: st.DrawFn) -> tuple[Stored, ...]:
    """Revisions of some models, which share contents."""
    sizes = draw(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 100), min_size=1))
    keys = draw(st.lists(st.tuples(st.sampled_from("xyz"), st.integers(1, 4)), unique=True, max_size=8))
    return tuple(
        Stored(
            reference=reference,
            revision=str(revision),
            files={digest: sizes[digest] for digest in draw(st.sets(st.sampled_from(sorted(sizes))))},
            last_used=NOW - timedelta(seconds=draw(st.integers(-5, 10_000))),
            pinned=draw(st.booleans()),
            in_use=draw(st.integers(0, 3)) == 0,
            alone=draw(st.integers(0, 3)) == 0,
        )
        for reference, revision in keys
    )


AMOUNTS = st.integers(0, 400)


@given(stores(), AMOUNTS, st.none() | AMOUNTS, st.none() | AMOUNTS)
def test_room_is_made_or_what_is_missing_is_told(
    here: tuple[Stored, ...], needed: int, budget: int | None, free: int | None
) -> None:
    plan = evictions(here, needed_bytes=needed, budget_bytes=budget, free_bytes=free, now=NOW)
    left = [each for each in here if each not in plan.drop]
    assert plan.freed_bytes == taken(here) - taken(left)
    most = taken(here) - taken(each for each in here if not each.may_go)
    over = max(taken(here) + needed - budget if budget is not None else 0, needed - free if free is not None else 0, 0)
    if plan.refused:
        assert plan.drop == ()
        assert plan.missing_bytes == over - most
    else:
        assert plan.freed_bytes >= over


@given(stores(), AMOUNTS, AMOUNTS)
def test_what_is_kept_is_never_dropped_and_nothing_is_in_vain(
    here: tuple[Stored, ...], needed: int, budget: int
) -> None:
    plan = evictions(here, needed_bytes=needed, budget_bytes=budget, now=NOW)
    assert not any(each.pinned or each.in_use or each.alone for each in plan.drop)
    assert len(set(map(id, plan.drop))) == len(plan.drop)
    for each in plan.drop:
        left = [other for other in here if other not in plan.drop or other is each]
        assert taken(left) + needed > budget, "it could have stayed"


@given(stores(), AMOUNTS, AMOUNTS)
def test_the_same_store_gives_the_same_answer_whatever_its_order(
    here: tuple[Stored, ...], needed: int, budget: int
) -> None:
    one = evictions(here, needed_bytes=needed, budget_bytes=budget, now=NOW)
    other = evictions(tuple(reversed(here)), needed_bytes=needed, budget_bytes=budget, now=NOW)
    assert one == other


def test_of_two_alike_the_one_that_was_idle_longer_goes() -> None:
    old, new = stored("old", 10, 500), stored("new", 10, 5)
    assert evictions([new, old], needed_bytes=5, budget_bytes=20, now=NOW).drop == (old,)


def test_one_large_model_goes_rather_than_small_ones_of_about_its_age() -> None:
    small = [stored(f"small-{n}", 5, 100 + n) for n in range(10)]
    large = stored("large", 50, 90)
    assert evictions([*small, large], needed_bytes=40, budget_bytes=100, now=NOW).drop == (large,)


def test_a_revision_whose_contents_another_shares_frees_only_the_rest() -> None:
    one = replace(stored("m", 0), revision="1", files={"same": 90, "own": 10})
    two = replace(one, revision="2", files={"same": 90, "other": 10}, in_use=True)
    plan = evictions([one, two], needed_bytes=50, budget_bytes=130, now=NOW)
    assert plan.refused
    assert plan.missing_bytes == 110 + 50 - 130 - 10


def test_without_need_nothing_goes() -> None:
    assert evictions([stored("m", 10)], needed_bytes=5, budget_bytes=15, now=NOW).drop == ()
    assert evictions([stored("m", 10)], needed_bytes=5, free_bytes=5, now=NOW).drop == ()
