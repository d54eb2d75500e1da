"""What to drop when room is needed: pure, so that asking what would go is the same as doing it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

LEAST_IDLE_S = 1.0
"""What was used just now counts as idle for this long, so that its size still tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A revision on a disk."""

    reference: str
    revision: str
    files: Mapping[str, int] = field(default_factory=dict[str, int])
    """Sizes of its contents in bytes, by digest; revisions of one model that have a content in common share it."""
    last_used: datetime
    pinned: bool = False
    in_use: bool = False
    alone: bool = False
    """Whether it is on no hub, and nobody else is sure to keep it."""

    @property
    def may_go(self) -> bool:
        """Whether it may be dropped to make room."""
        return not (self.pinned or self.in_use or self.alone)

    @property
    def size_bytes(self) -> int:
        """Size of all its contents."""
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class Evictions:
    """What is to be dropped, in this order, or how much room is missing even without all that may be dropped."""

    drop: tuple[Stored, ...]
    freed_bytes: int
    missing_bytes: int = 0
    """Room that cannot be made; then nothing is dropped."""

    @property
    def refused(self) -> bool:
        """Whether there is no way to make the room."""
        return self.missing_bytes > 0


def evictions(
    stored: Iterable[Stored],
    *,
    needed_bytes: int,
    now: datetime,
    budget_bytes: int | None = None,
    free_bytes: int | None = None,
) -> Evictions:
    """Return what to drop so that `needed_bytes` fit into the budget, and onto the disk.

    The first to go is what has been idle for the longest, weighted by the bytes that its going frees: one large model
    rather than many small ones. What is pinned, in use or alone is never dropped, and nothing is that need not be.

    Args:
        stored: What is on the disk and is ours.
        needed_bytes: Size of what is to come.
        now: The time that idleness is counted to.
        budget_bytes: Most bytes that all of it may take; none: the disk is the only bound.
        free_bytes: What the disk has left beyond its reserve; none: the budget is the only bound.
    """
    here = tuple(stored)
    lacking = _lacking(here, needed_bytes, budget_bytes, free_bytes)
    if lacking <= 0:
        return Evictions((), 0)
    chosen: list[Stored] = []
    while (freed := _freed(here, chosen)) < lacking:
        best = _first(here, chosen, freed, now)
        if best is None:
            return Evictions((), 0, missing_bytes=lacking - freed)
        chosen.append(best)
    chosen = _needed(here, chosen, lacking)
    return Evictions(tuple(chosen), _freed(here, chosen))


def _lacking(here: tuple[Stored, ...], needed: int, budget: int | None, free: int | None) -> int:
    over_budget = _taken(here) + needed - budget if budget is not None else 0
    over_disk = needed - free if free is not None else 0
    return max(over_budget, over_disk)


def _first(here: tuple[Stored, ...], chosen: list[Stored], freed: int, now: datetime) -> Stored | None:
    """Return what goes next; of a model whose revisions share all of their contents, any that may go."""

    def weight(each: Stored) -> tuple[float, float]:
        idle_s = max((now - each.last_used).total_seconds(), LEAST_IDLE_S)
        return idle_s * (_freed(here, [*chosen, each]) - freed), idle_s

    may = [each for each in here if each.may_go and each not in chosen]
    return max(may, key=weight, default=None)


def _needed(here: tuple[Stored, ...], chosen: list[Stored], lacking: int) -> list[Stored]:
    """Leave out what was chosen early and is not needed beside what was chosen later."""
    left = list(chosen)
    for each in chosen:
        without = [other for other in left if other is not each]
        if _freed(here, without) >= lacking:
            left = without
    return left


def _freed(here: tuple[Stored, ...], gone: list[Stored]) -> int:
    return _taken(here) - _taken(each for each in here if each not in gone)


def _taken(stored: Iterable[Stored]) -> int:
    contents = {(each.reference, digest): size for each in stored for digest, size in each.files.items()}
    return sum(contents.values())
