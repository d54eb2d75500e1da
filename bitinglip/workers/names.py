"""Which of a worker's models are the same: `org/m` and `org/m@commit` are loaded once, whatever they are called.

A model that a hub's cache calls `main`, or that a folder of this machine is, can be asked for with its revision and
without. What is loaded, planned and told of has one name, the shorter one; only queues have both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.view import CardView, Held


class Names:
    """The names of some models."""

    def __init__(self, models: Iterable[ModelSpec] = ()) -> None:
        same: dict[tuple[object, ...], list[ModelSpec]] = defaultdict(list)
        for model in models:
            same[_weights(model)].append(model)
        self._spec: dict[str, ModelSpec] = {}
        for group in same.values():
            first = min(group, key=lambda model: (len(model.reference), model.reference))
            self._spec.update({model.reference: first for model in group})

    def of(self, reference: str, revision: str | None = None) -> str:
        """Return the one name of a model; one that is not known has its own.

        `revision`: of a peer's model, which may be known here with it alone.
        """
        spec = self._spec.get(reference)
        if spec is None and revision is not None:
            spec = self._spec.get(f"{reference}@{revision}")
        return reference if spec is None else spec.reference

    def spec(self, model: ModelSpec) -> ModelSpec:
        """Return a model by its one name."""
        spec = self._spec.get(model.reference)
        return spec if spec is not None and _weights(spec) == _weights(model) else model

    @property
    def specs(self) -> list[ModelSpec]:
        """Each model once."""
        return list({spec.reference: spec for spec in self._spec.values()}.values())

    def card(self, card: CardView) -> CardView:
        """Return a card with what it has in memory by the names that are used here."""

        def named(reference: str) -> str:
            return self.of(reference, card.revisions.get(reference))

        held: dict[str, Held] = {}
        for each in card.loaded:
            name = named(each.reference)
            held.setdefault(name, each if name == each.reference else replace(each, reference=name))
        loading = None if card.loading is None else named(card.loading)
        return replace(card, loaded=tuple(held.values()), loading=loading, pinned=frozenset(map(named, card.pinned)))


def _weights(model: ModelSpec) -> tuple[object, ...]:
    """Return what tells models apart in memory."""
    how = (model.quantize, model.vllm, model.trust_code, model.trust_pickles)
    return (model.kind, model.path or model.reference, model.revision, model.written_ns, *how)
