"""Which texts go through a model together: pure."""

from __future__ import annotations

from collections.abc import Sequence


def passes(lengths: Sequence[int], most: int, pass_cost: int) -> list[int]:
    """Return how many texts each pass takes, so that all passes together cost the least.

    A pass costs as many tokens as its longest text has, for each of its texts, and `pass_cost` besides: many passes
    cost themselves, few of them padding.

    Args:
        lengths: Tokens of each text, in ascending order.
        most: Most texts of one pass.
        pass_cost: What a pass costs, in tokens.
    """
    least = [0]  # least[n]: what the first n texts cost
    begins: list[int] = []  # begins[n]: where the last pass of the first n + 1 texts begins
    for end, longest in enumerate(lengths, 1):
        cost, begin = min(
            (least[start] + pass_cost + longest * (end - start), start) for start in range(max(0, end - most), end)
        )
        least.append(cost)
        begins.append(begin)
    sizes: list[int] = []
    end = len(lengths)
    while end:
        sizes.append(end - begins[end - 1])
        end = begins[end - 1]
    return sizes[::-1]
