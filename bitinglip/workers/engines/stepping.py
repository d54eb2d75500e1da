"""Text generation one step after the other: rows leave a batch as they end, and new ones join it between two steps.

A short answer never waits for a long one, and a new task never for a batch. Each step is one forward pass over the rows
that are on their way; a row that joins costs one pass over its own prompt alone.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from bitinglip.workers.engines.failures import is_out_of_memory
from bitinglip.workers.engines.kvcache import RowCache
from bitinglip.workers.engines.rows import Row
from bitinglip.workers.engines.steering import RowSampler
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights

log = logging.getLogger(__name__)

MOST_ROWS = 64
"""Rows of one batch; memory may halve them."""
MOST_PREFILL_TOKENS = 8192
"""Tokens of one pass over new prompts, padding included: its activations are what takes the most memory."""
SPARSE = 4
"""A batch is repacked when one row in so many is over: each repacking copies the cache."""


class Stepper:
    """Brings rows to their end on one model."""

    def __init__(
        self, weights: Weights, layers: int, ends: frozenset[int], pad: int, fail: Callable[..., None]
    ) -> None:
        """`fail` is called with a row and the exception that ends it."""
        self._model = weights.model
        self._device = weights.device
        self._layers = layers
        self._ends = ends
        self._pad = pad
        self._fail = fail
        known = inspect.signature(weights.model.forward).parameters
        self._takes_positions = "position_ids" in known
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        self._rows: list[Row] = []
        self._cache: RowCache | None = None
        self._waiting: deque[Row] = deque()
        self._most = MOST_ROWS

    def run(self, rows: Iterable[Row], more: Callable[[], Iterable[Row]]) -> None:
        """Bring these rows, and those that `more` returns at each step, to their end."""
        self._waiting.extend(rows)
        self._most = MOST_ROWS
        try:
            while True:
                self._waiting.extend(more())
                if not self._guarded(self._admit):
                    continue
                if not self._rows:
                    if not self._waiting:
                        return
                    continue
                self._guarded(self._step)
                self._repack()
        finally:
            self._rows, self._cache = [], None
            self._waiting.clear()

    # --- steps --------------------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Let rows that wait join, as long as there is room."""
        while group := self._next_group():
            fresh = self._prefilled(group)
            if self._cache is None:
                self._cache, self._rows = fresh, group
            else:
                self._cache.merge(fresh)
                self._rows = [*self._rows, *group]
            for _ in group:
                self._waiting.popleft()
            self._repack()

    def _next_group(self) -> list[Row]:
        """Return the first rows that wait, as many as one pass may take; they stay where they are until it is done."""
        while self._waiting and (self._waiting[0].over or self._waiting[0].check_cancelled()):
            self._waiting.popleft()
        room = self._most - len(self._rows)
        group: list[Row] = []
        widest = 0
        for row in self._waiting:
            widest = max(widest, len(row.prompt) + len(row.tokens))
            if len(group) >= room or (group and widest * (len(group) + 1) > MOST_PREFILL_TOKENS):
                break
            group.append(row)
        return group

    def _prefilled(self, group: list[Row]) -> RowCache:
        """Run the prompts of rows, and what they have said, through the model; each takes its next token."""
        texts = [row.prompt + row.tokens for row in group]
        width = max(map(len, texts))
        device = self._device
        ids = torch.tensor([[self._pad] * (width - len(text)) + text for text in texts], device=device)  # (B, T)
        mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=device)  # (B, T)
        cache = RowCache(self._layers, mask)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T)
        self._take(group, self._forward(ids, positions, cache))
        return cache

    def _step(self) -> None:
        """Run the last token of each row through the model; each takes its next one."""
        cache = self._cache
        assert cache is not None, "there are rows"
        ids = torch.tensor([[row.tokens[-1]] for row in self._rows], device=self._device)  # (B, 1)
        positions = cache.lengths[:, None]  # (B, 1)
        cache.advance()
        self._take(self._rows, self._forward(ids, positions, cache))

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, cache: RowCache) -> torch.Tensor:
        """Return the logits after the last token of each row, (B, V)."""
        inputs: dict[str, Any] = {"input_ids": ids, "past_key_values": cache.states, "use_cache": True}
        if cache.padded:
            inputs["attention_mask"] = cache.mask
        if self._takes_positions:
            inputs["position_ids"] = positions
        return self._model(**inputs, **self._last_only).logits[:, -1]

    def _take(self, rows: list[Row], logits: torch.Tensor) -> None:
        chosen = RowSampler(rows)(logits, logits).argmax(-1).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.take(token, self._ends)

    def _repack(self) -> None:
        """Let go of the rows that are over, if there are many of them, or if others wait for their places."""
        kept = [index for index, row in enumerate(self._rows) if not row.over]
        over = len(self._rows) - len(kept)
        if over == 0 or (over * SPARSE < len(self._rows) and not self._waiting):
            return
        self._rows = [self._rows[index] for index in kept]
        if not kept:
            self._cache = None
        elif self._cache is not None:
            self._cache.select(kept)

    # --- memory -------------------------------------------------------------------------------------------------------

    def _guarded(self, step: Callable[[], None]) -> bool:
        """Do a step; without the memory for it, begin again with half as many rows. Tells whether it was done."""
        try:
            step()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # which would hold the tensors of its frames
        else:
            return True
        self._shrink(problem)
        return False

    def _shrink(self, problem: Exception) -> None:
        live = [row for row in self._rows if not row.over]
        tried = max(1, min(self._most, len(live) + len(self._waiting)))
        self._rows, self._cache = [], None
        self._waiting.extendleft(reversed(live))
        give_memory_back()
        if tried == 1 and self._waiting:
            self._fail(self._waiting.popleft(), problem)
            return
        self._most = max(1, tried // 2)
        log.warning("no room for %d rows at once; going on with %d", tried, self._most)
