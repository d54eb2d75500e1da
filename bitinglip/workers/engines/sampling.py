"""Sampling one row with its own parameters and its own random generator."""

from __future__ import annotations

import torch


def sample_scores(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator) -> torch.Tensor:
    """Return scores of which the largest is a draw from the row's distribution.

    Log-probabilities plus Gumbel noise have their maximum at a sample (Gumbel 1954; Maddison et al. 2014). The noise is
    drawn on the CPU in float32, so that a seed means the same on every device.
    """
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)  # (V)
    if top_p < 1.0:
        log_probs = _nucleus(log_probs, top_p)
    uniform = torch.rand(log_probs.shape, generator=generator).clamp_(1e-20, 1.0)
    noise = -torch.log(-torch.log(uniform))
    return (log_probs + noise.to(log_probs.device)).to(logits.dtype)


def _nucleus(log_probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the likeliest tokens whose probabilities first add up to `top_p` (Holtzman et al. 2019)."""
    ordered, order = log_probs.sort(descending=True)
    before = ordered.exp().cumsum(0) - ordered.exp()
    kept = torch.where(before < top_p, ordered, float("-inf"))
    return torch.empty_like(log_probs).scatter_(0, order, kept)
