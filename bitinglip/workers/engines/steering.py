"""How rows steer `generate`: each has sampling, stop texts and a length of its own, and ends by itself."""

from __future__ import annotations

from typing import Any

import torch
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria

from bitinglip.workers.engines.rows import Row
from bitinglip.workers.engines.sampling import draw
from bitinglip.workers.engines.weights import Weights


class RowReader(StoppingCriteria):
    """Hands each step's tokens to their rows, and stops each row when it is over.

    It does a streamer's work as well: `generate` asks the criteria before it calls the streamer, on some devices a step
    before, so that a streamer could end a row only a step late.
    """

    def __init__(self, rows: list[Row], ends: frozenset[int]) -> None:
        self._rows = rows
        self._ends = ends

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step's tokens, (B, T); returns which rows are over, (B)."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.take(token, self._ends)
        return torch.tensor([row.over for row in self._rows], device=input_ids.device)  # (B)


class RowSampler(LogitsProcessor):
    """Draws the next token of the rows that sample, so that `argmax` finds it; the others stay as they are."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return (B, V) scores in which each sampled row has one token to choose."""
        chosen = [index for index, row in enumerate(self._rows) if row.sampled and not row.over]
        if not chosen:
            return scores  # (B, V)
        rows = [self._rows[index] for index in chosen]
        numbers = [(row.job.params.temperature, row.job.params.top_p, row.dice.throw()) for row in rows]
        settings = torch.tensor(numbers, dtype=torch.float32, device=scores.device)  # (S, 3)
        where = torch.tensor(chosen, device=scores.device)  # (S)
        tokens = draw(scores[where], *settings.unbind(1))  # (S)
        scores[where] = float("-inf")
        scores[where, tokens] = 0.0
        return scores  # (B, V)


def end_tokens(weights: Weights) -> frozenset[int]:
    """Return every token that ends a text; a checkpoint names one or several, in one or several places."""
    owners = (weights.model.generation_config, weights.model.config, weights.tokenizer)
    named = [getattr(owner, "eos_token_id", None) for owner in owners]
    return frozenset(token for ids in named for token in _as_list(ids))


def _as_list(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
