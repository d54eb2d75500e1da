"""Who a worker is, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the worker is, in the events that it writes."""

    worker_id: str
    node_id: str
    device: str


@dataclass(slots=True)
class Counts:
    """What the worker did since its start."""

    running: int = 0
    done: int = 0
    failed: int = 0
