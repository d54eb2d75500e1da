"""Where a task goes that a card was too small for: to one with more memory, if the cluster has one. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from bitinglip.events.task import Failure
from bitinglip.tasks.state import Task
from bitinglip.workers.view import GIB, CardView, Requires


@dataclass(frozen=True, slots=True)
class Outgrown:
    """What becomes of a task that a card was too small for."""

    failure: Failure
    """What is told of it."""
    next_vram_gb: float | None
    """GiB that its next card must have; none: the cluster has no bigger one that may run it."""


def outgrown(task: Task, failure: Failure, device_bytes: int, peers: Iterable[CardView]) -> Outgrown:
    """Return where a task goes on that has run out of memory on a device of so many bytes."""
    needs = Requires(more_than(device_bytes), _labels(task))
    told = failure.model_copy(update={"device_bytes": device_bytes})
    if any(_may_run(card, task.submitted.model, needs) for card in peers):
        return Outgrown(told, needs.vram_gb)
    nowhere = f"No card of the cluster that may run it is bigger than this one, of {device_bytes / GIB:.1f} GiB."
    return Outgrown(told.model_copy(update={"message": f"{failure.message} {nowhere}"}), None)


def more_than(device_bytes: int) -> float:
    """Return what a bigger card has at least, in GiB: one more than is written on the box of this one.

    Whole numbers, so that there are few queues; and cards of one size tell totals that differ a little.

    >>> more_than(8_361_345_024), more_than(8 * GIB)
    (9.0, 9.0)
    """
    return float(ceil(device_bytes / GIB) + 1)


def _may_run(card: CardView, model: str, needs: Requires) -> bool:
    return card.meets(needs) and (card.serves is None or model in card.serves)


def _labels(task: Task) -> frozenset[str]:
    asked = task.submitted.requires
    return frozenset(asked.labels if asked is not None else ())
