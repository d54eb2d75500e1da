"""Sampling: each row of a batch with its own parameters and its own random numbers."""

from __future__ import annotations

import torch

COLDEST = 1e-4
"""A temperature below this one takes the likeliest token."""
LARGEST_UNIFORM = 1 - 2**-22
"""So that in float32 its product with a sum is below the sum."""


class Dice:
    """One row's random numbers: one a token, drawn on the CPU, so that a seed means the same on every device."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def throw(self) -> float:
        """Return the next number in [0, 1)."""
        return min(torch.rand((), generator=self._generator).item(), LARGEST_UNIFORM)


def draw(
    logits: torch.Tensor, temperatures: torch.Tensor, top_ps: torch.Tensor, uniforms: torch.Tensor
) -> torch.Tensor:
    """Draw a token a row from (S, V) logits by inverting each row's distribution function; the others are (S).

    The tokens stay in the vocabulary's order, so that rounding moves a result only at the border of two of them.
    """
    probs = torch.softmax(logits.float() / temperatures[:, None], dim=-1)  # (S, V)
    if bool((top_ps < 1).any()):
        probs = _nucleus(probs, top_ps)
    sums = probs.cumsum(-1)  # (S, V)
    return torch.searchsorted(sums, (uniforms * sums[:, -1])[:, None], right=True).squeeze(1)  # (S)


def _nucleus(probs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """Keep the likeliest tokens whose probabilities first add up to `top_p` (Holtzman et al. 2019)."""
    ordered, order = probs.sort(descending=True, stable=True)  # (S, V)
    dropped = (ordered.cumsum(-1) - ordered >= top_ps[:, None]) & (top_ps < 1)[:, None]
    return probs.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), 0.0)
