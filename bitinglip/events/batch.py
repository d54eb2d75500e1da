"""Facts about batches: tasks that were asked for together, with one handle."""

from __future__ import annotations

from bitinglip.events.registry import Event, event

_ID = "01JZ0000000000000000000000"


class BatchEvent(Event):
    """Base of the facts about one batch."""

    batch_id: str


@event
class BatchOpened(BatchEvent):
    """A batch was begun; its tasks follow."""

    type = "batch.opened"
    example = {"batch_id": _ID, "name": "captions", "request_sha256": "0" * 64}

    name: str | None = None
    metadata: dict[str, str] = {}
    key_id: str | None = None
    request_sha256: str
    """Digest of the request, by which a repeat with the same idempotency key is told from another request."""


@event
class BatchExtended(BatchEvent):
    """Tasks were added to it: they are in the log just before this event, stored together with it or not at all."""

    type = "batch.extended"
    example = {"batch_id": _ID, "part": "first", "added": 3, "tasks": 3, "request_sha256": "0" * 64}

    part: str
    """Request that adds them; a large one adds piece by piece, each with such an event."""
    added: int
    """How many of the part's tasks are in the log by now."""
    tasks: int
    """How many the batch has by now."""
    request_sha256: str
    """Digest of the request."""


@event
class BatchClosed(BatchEvent):
    """All of its tasks are in the log; none follows."""

    type = "batch.closed"
    example = {"batch_id": _ID, "tasks": 3}

    tasks: int
    """How many it has."""


@event
class BatchCompleted(BatchEvent):
    """The last of its tasks has ended."""

    type = "batch.completed"
    example = {"batch_id": _ID, "tasks": 3, "counts": {"succeeded": 2, "dead_lettered": 1}}

    tasks: int
    counts: dict[str, int]
    """How many ended in each state; states that none ended in are left out."""
