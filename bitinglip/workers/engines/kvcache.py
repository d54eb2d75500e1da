"""Keys and values of a batch whose rows come and go between steps.

transformers' own cache is copied whole at each step, to make it one token longer. Here each layer has room to grow, and
is copied when the room is used up, or when rows leave or join.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 1.5
"""Growth of a layer whose room is used up."""
LEAST_ROOM = 64
"""Tokens that a new layer has room for beyond its own."""


class GrowingLayer(DynamicLayer):
    """One layer: `keys` and `values`, (B, heads, T, D), are the beginnings of larger buffers."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[torch.Tensor] = []
        self._length = 0
        self._views: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add states, (B, heads, new, D); returns all that are there."""
        begin, end = self._length, self._length + key_states.shape[-2]
        new = [key_states, value_states]
        if not self._buffers or end > self._buffers[0].shape[-2]:
            self._grow(new, end)
        for buffer, states in zip(self._buffers, new, strict=True):
            buffer[:, :, begin:end] = states
        self._show(end)
        keys, values = self._views
        return keys, values

    def select(self, rows: torch.Tensor, cut: int) -> None:
        """Keep these rows, without their first `cut` tokens."""
        here = rows.to(self._views[0].device)  # the layers of a spread model are on several devices
        self._replace([states.index_select(0, here)[:, :, cut:] for states in self._views])

    def merge(self, other: GrowingLayer, width: int) -> None:
        """Add the rows of another layer; both are brought to a width by zeros on the left, which are masked out."""
        pairs = zip(self._views, other._views, strict=True)
        self._replace([torch.cat([_left_padded(states, width) for states in pair]) for pair in pairs])

    def _grow(self, like: list[torch.Tensor], least: int) -> None:
        room = max(int(least * ROOM), least + LEAST_ROOM)
        old, self._buffers = self._buffers, []
        for states in like:
            batch, heads, _, size = states.shape
            self._buffers.append(states.new_empty(batch, heads, room, size))
        for buffer, before in zip(self._buffers, old, strict=False):
            buffer[:, :, : self._length] = before[:, :, : self._length]

    def _replace(self, states: list[torch.Tensor]) -> None:
        length = states[0].shape[-2]
        self._buffers, self._length = [], 0
        self._grow(states, length)
        for buffer, some in zip(self._buffers, states, strict=True):
            buffer[:, :, :length] = some
        self._show(length)

    def _show(self, length: int) -> None:
        self._length = length
        self._views = [buffer[:, :, :length] for buffer in self._buffers]
        self.keys, self.values = self._views
        self.is_initialized = True


class RowCache:
    """The cache of a batch, and its mask, (B, T): rows are padded on the left."""

    def __init__(self, layers: int, mask: torch.Tensor) -> None:
        self._layers = [GrowingLayer() for _ in range(layers)]
        self.states = DynamicCache()
        self.states.layers = cast("Any", self._layers)
        self.mask = mask
        self.lengths = mask.sum(-1)  # (B)
        self.padded = bool((self.lengths < mask.shape[1]).any())

    @staticmethod
    def layers_of(config: Any) -> int | None:
        """Return how many layers a model's cache has; none if some of them are not plain attention over all tokens."""
        layers = DynamicCache(config=config).layers
        return len(layers) if layers and all(type(layer) is DynamicLayer for layer in layers) else None

    def advance(self) -> None:
        """Make room for one more token a row in the mask; the forward pass that follows fills the layers."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self.lengths = self.lengths + 1

    def select(self, rows: list[int]) -> None:
        """Keep these rows, and no column that is padding in all of them."""
        index = torch.tensor(rows, device=self.mask.device)
        cut = self.mask.shape[1] - int(self.lengths[index].max())
        for layer in self._layers:
            layer.select(index, cut)
        self._set(self.mask[index][:, cut:])

    def merge(self, other: RowCache) -> None:
        """Add the rows of another cache."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        for layer, more in zip(self._layers, other._layers, strict=True):
            layer.merge(more, width)
        masks = [torch.nn.functional.pad(mask, (width - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self._set(torch.cat(masks))

    def _set(self, mask: torch.Tensor) -> None:
        self.mask = mask
        self.lengths = mask.sum(-1)
        self.padded = bool((self.lengths < mask.shape[1]).any())


def _left_padded(states: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[-2], 0))
