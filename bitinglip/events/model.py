"""Facts about models."""

from __future__ import annotations

from bitinglip.events.registry import Event, event


class ModelEvent(Event):
    """Base of the facts about one model."""

    reference: str


@event
class ModelRegistered(ModelEvent):
    """A worker can run this model; said once for each kind and revision."""

    type = "model.registered"
    example = {
        "reference": "openai-community/gpt2",
        "kind": "text-generation",
        "revision": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "architecture": "GPT2LMHeadModel",
        "size_bytes": 548_105_171,
        "context_tokens": 1024,
    }

    kind: str
    revision: str | None
    architecture: str | None = None
    size_bytes: int | None = None
    """Size of the weights on disk."""
    context_tokens: int | None = None
    """Longest context, in tokens; none where that has no meaning."""
