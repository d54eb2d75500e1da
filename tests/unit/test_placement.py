"""Where a model fits, and which node is chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.models.placement import ORDER, Asked, Card, Machine, Refusal, best, choose, fit
from bitinglip.models.state import Status

GIB = 2**30
NEED = {"float32": 30 * GIB, "bfloat16": 16 * GIB, "int8": 9 * GIB, "int4": 6 * GIB}
STATUSES: tuple[Status, ...] = ("absent", "wanted", "fetching", "stored", "failed", "stopped", "removing")


def asked(**changes: Any) -> Asked:
    return replace(Asked(need_bytes=NEED, dtype="BF16", size_bytes=15 * GIB, holdings={}), **changes)


def machine(name: str, *gib: float, disk: float = 100, device: str = "cuda", **changes: Any) -> Machine:
    cards = tuple(Card(device if device == "cpu" else f"{device}:{n}", int(size * GIB)) for n, size in enumerate(gib))
    return Machine(name, cards, int(disk * GIB), **changes)


@pytest.mark.parametrize(
    ("gib", "verdict", "precision"),
    [
        ((24,), "fits", "bfloat16"),
        ((12,), "quantised", "int8"),
        ((8,), "quantised", "int4"),
        ((5,), "too_big", "bfloat16"),
    ],
)
def test_a_card_is_judged_by_the_checkpoints_own_precision(
    gib: tuple[float, ...], verdict: str, precision: str
) -> None:
    [found] = fit(asked(), [machine("a", *gib)])
    assert (found.verdict, found.cards[0].verdict, found.cards[0].precision) == (verdict, verdict, precision)


def test_a_smaller_precision_comes_before_quantising() -> None:
    [found] = fit(asked(dtype="F32"), [machine("a", 20)])
    assert (found.verdict, found.cards[0].precision) == ("smaller", "bfloat16")


def test_on_a_cpu_it_is_loaded_as_float32() -> None:
    [found] = fit(asked(), [machine("a", 32, device="cpu")])
    assert (found.verdict, found.cards[0].precision) == ("smaller", "bfloat16")
    [found] = fit(asked(), [machine("a", 64, device="cpu")])
    assert (found.verdict, found.cards[0].precision) == ("fits", "float32")


def test_two_cards_of_one_machine_hold_what_one_cannot() -> None:
    small = asked(need_bytes={"bfloat16": 16 * GIB})
    assert [each.verdict for each in fit(small, [machine("a", 10, 10), machine("b", 10), machine("c", 5, 5)])] == [
        "spread", "too_big", "too_big",
    ]  # fmt: skip


def test_what_nobody_knows_is_not_refused() -> None:
    unknown = asked(need_bytes={}, dtype=None)
    assert fit(unknown, [machine("a", 1)])[0].verdict == "unknown"
    assert choose(unknown, [machine("a", 1)]) == "a"


def test_a_refusal_says_what_to_do_instead() -> None:
    cases = [
        (asked(), [], "no node is online", "bitinglip node"),
        (asked(), [machine("a", 24, online=False)], "no node is online", "bitinglip node"),
        (asked(), [machine("a", 24, disk=3), machine("b", 5)], "a has the most free, 3.0 GiB", "model prune --node a"),
        (asked(dtype="F32"), [machine("a", 20)], "fits on no card", "as bfloat16 on a (`worker.dtype`)"),
        (asked(), [machine("a", 12)], "can hold 10.8 GiB", "as int8 on a (`worker.quantize`)"),
        (asked(need_bytes={"bfloat16": 16 * GIB}), [machine("a", 10, 10)], "fits on no card", "cuda:0,cuda:1"),
        (asked(), [machine("a", 5)], "fits on no card", "a card that can hold 6.0 GiB"),
        (asked(), [machine("a")], "told of its memory", "heartbeat"),
    ]
    for what, machines, problem, instead in cases:
        refusal = choose(what, machines)
        assert isinstance(refusal, Refusal)
        assert problem in refusal.problem
        assert instead in refusal.instead


def test_who_has_it_is_chosen_before_who_fetches_it() -> None:
    machines = [machine("a", 24, disk=500), machine("b", 24), machine("c", 24)]
    assert choose(asked(), machines) == "a"
    assert choose(asked(holdings={"b": "fetching"}), machines) == "b"
    assert choose(asked(holdings={"b": "fetching", "c": "stored"}), machines) == "c"
    assert choose(asked(holdings={"b": "failed"}), machines) == "a"


@st.composite
def clusters(draw: Any) -> tuple[Asked, list[Machine]]:
    """Draw a model and some machines."""
    names = [f"n{number}" for number in range(draw(st.integers(0, 4)))]
    machines = [
        machine(
            name,
            *draw(st.lists(st.sampled_from([4, 8, 12, 24, 48]), max_size=3)),
            disk=draw(st.sampled_from([0, 10, 20, 400])),
            online=draw(st.booleans()),
        )
        for name in names
    ]
    need = {name: size for name, size in NEED.items() if draw(st.booleans())}
    holdings = {name: draw(st.sampled_from(STATUSES)) for name in names if draw(st.booleans())}
    dtype = draw(st.sampled_from(["F32", "BF16", "F16", "I8", None]))
    return asked(need_bytes=need, dtype=dtype, holdings=holdings), machines


@given(clusters())
def test_the_chosen_node_is_online_and_has_it_or_can_run_and_store_it(drawn: tuple[Asked, list[Machine]]) -> None:
    what, machines = drawn
    fits = {each.node_id: each for each in fit(what, machines) if each.online}
    held = {"stored", "wanted", "fetching"}
    good = {name for name, each in fits.items() if each.verdict in {"fits", "unknown"} and each.room}
    holders = {name for name, each in fits.items() if each.status in held}
    chosen = choose(what, machines)
    if isinstance(chosen, Refusal):
        assert not good
        assert not holders
        assert chosen.instead
    else:
        assert chosen in (holders or good)
        if not holders:
            same = [fits[name] for name in good if fits[name].verdict == fits[chosen].verdict]
            assert fits[chosen].disk_free_bytes == max(each.disk_free_bytes or 0 for each in same)


@given(clusters(), st.integers(1, 64))
def test_more_memory_never_makes_it_worse(drawn: tuple[Asked, list[Machine]], more: int) -> None:
    what, machines = drawn
    larger = [
        replace(each, cards=tuple(replace(card, memory_bytes=card.memory_bytes + more * GIB) for card in each.cards))
        for each in machines
    ]
    for before, after in zip(fit(what, machines), fit(what, larger), strict=True):
        assert ORDER.index(after.verdict) <= ORDER.index(before.verdict)
    assert ORDER.index(best(fit(what, larger))) <= ORDER.index(best(fit(what, machines)))
