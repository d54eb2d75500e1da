"""Passes over texts: each text once, and together as cheap as can be."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.passes import passes

LENGTHS = st.lists(st.integers(1, 500), max_size=9).map(sorted)


def cost(lengths: list[int], sizes: list[int], pass_cost: int) -> int:
    total, start = 0, 0
    for size in sizes:
        total += pass_cost + size * lengths[start + size - 1]
        start += size
    return total


@given(LENGTHS, st.integers(1, 5), st.integers(0, 300))
def test_no_other_way_to_cut_is_cheaper(lengths: list[int], most: int, pass_cost: int) -> None:
    sizes = passes(lengths, most, pass_cost)
    assert sum(sizes) == len(lengths)
    assert all(1 <= size <= most for size in sizes)
    for count in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), count):
            edges = [0, *cuts, len(lengths)]
            other = [end - start for start, end in pairwise(edges)]
            if max(other, default=0) <= most:
                assert cost(lengths, sizes, pass_cost) <= cost(lengths, other, pass_cost)


def test_texts_of_one_length_share_a_pass() -> None:
    assert passes([7] * 32, 32, 64) == [32]


def test_one_long_text_does_not_pad_the_short_ones() -> None:
    assert passes([10] * 20 + [500], 32, 64) == [20, 1]


def test_where_a_pass_is_dear_padding_is_cheaper() -> None:
    assert passes([10] * 20 + [500], 32, 100_000) == [21]
