"""Facts about models."""

from __future__ import annotations

from bitinglip.events.registry import Event, event
from bitinglip.events.task import Lane


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


class QueueEvent(Event):
    """Base of what somebody had the queues of a model do."""

    model: str
    lane: Lane | None
    """The lane that is meant; none: all."""
    by: str | None
    """Name of the key that asked for it; none on a gateway without keys."""
    reason: str | None = None


@event
class QueuePaused(QueueEvent):
    """What waits for the model is handed to no worker; what runs goes on."""

    type = "queue.paused"
    example = {"model": "openai-community/gpt2", "lane": "batch", "by": "gateway", "reason": "new weights are coming"}


@event
class QueueResumed(QueueEvent):
    """What waits for the model is handed to workers again."""

    type = "queue.resumed"
    example = {"model": "openai-community/gpt2", "lane": None, "by": "gateway", "reason": None}
