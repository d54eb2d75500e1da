"""What a node has to do about its models next: a pure function of what is wished and of what lies on its disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from zlib import crc32

from bitinglip.models.state import Holding, Key, Models, Revision

PATIENCE_S = 15.0
"""Another node that fetches a revision is waited for as long as it tells of progress at least this often."""
TURN_S = 3.0
"""Of several nodes that are to have a revision one begins; the others wait for it to do so for this long."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What lies on the node's disk and is ours."""

    stored: Mapping[Key, int] = field(default_factory=dict[Key, int])
    """Size in bytes of what is there as a whole."""
    unfinished: frozenset[Key] = frozenset()
    """What is there in part."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Bring a revision, which is described."""

    key: Key
    not_before: datetime | None = None
    """It was tried, or others come first; none: now."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Drop a revision, or what is there of it; `tell`: somebody asked for it, and hears of it."""

    key: Key
    tell: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """Compare a revision with its digests."""

    key: Key
    repair: bool


@dataclass(frozen=True, slots=True)
class TakeIn:
    """Import a folder under a name."""

    reference: str
    path: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell the log what it has got wrong: a revision is there, or is so no more."""

    key: Key
    what: Literal["stored", "missing"]


Action = Fetch | Remove | Check | TakeIn | Tell


def to_do(models: Models, disk: Disk, node_id: str, now: datetime, *, peers: bool = True) -> list[Action]:
    """Return what is to be done, the oldest wish first; the same again as long as nothing was done.

    `peers`: whether nodes give each other what they have, so that one need not ask the hub for what another fetches.
    """
    found = [(revision.on(node_id).sequence, action) for revision, action in _about(models, disk, node_id, now, peers)]
    unheard = [Tell(key, "stored") for key in sorted(disk.stored) if key not in models.revisions]
    imports = [
        TakeIn(reference, each.path)
        for (reference, node), each in models.imports.items()
        if node == node_id and each.problem is None
    ]
    return [*unheard, *[action for _, action in sorted(found, key=lambda each: each[0])], *imports]


def _about(models: Models, disk: Disk, node_id: str, now: datetime, peers: bool) -> Iterator[tuple[Revision, Action]]:
    parts = _parts(models, node_id)
    for key, revision in models.revisions.items():
        holding = revision.on(node_id)
        action = _for(key, holding, disk) or _fetch(key, revision, holding, now, wanted=key in parts, peers=peers)
        if action is not None:
            yield revision, action


def _for(key: Key, holding: Holding, disk: Disk) -> Action | None:
    """Return what is to be done but for fetching."""
    there = key in disk.stored
    match holding.status:
        case "removing":
            return Remove(key)
        case "stored" if not there:
            return Tell(key, "missing")
        case "stored" if holding.check is not None:
            return Check(key, repair=holding.check == "repair")
        case "stored":
            return None
        case _ if there:
            return Tell(key, "stored")
        case "absent" if key in disk.unfinished and holding.sequence:
            return Remove(key, tell=False)
        case _:
            return None


def _fetch(key: Key, revision: Revision, holding: Holding, now: datetime, *, wanted: bool, peers: bool) -> Fetch | None:
    if revision.described is None or holding.status in {"stored", "removing", "stopped"}:
        return None
    if not (holding.wanted or (wanted and not holding.sequence)):
        return None
    if holding.status == "failed":
        return None if holding.retry_at is None else Fetch(key, holding.retry_at if holding.retry_at > now else None)
    if holding.status == "wanted" and peers:
        return Fetch(key, _turn(key, revision, holding, now))
    return Fetch(key)


def _turn(key: Key, revision: Revision, holding: Holding, now: datetime) -> datetime | None:
    """Return until when other nodes are waited for that fetch the same; none: it is our turn, or one has it already."""
    others = [other for node_id, other in revision.holdings.items() if node_id != holding.node_id]
    if any(other.status == "stored" for other in others):
        return None
    waits = [_after(other, PATIENCE_S) for other in others if other.status == "fetching"]
    ours = _rank(key, holding.node_id)
    waits += [
        _after(other, TURN_S) for other in others if other.status == "wanted" and _rank(key, other.node_id) < ours
    ]
    return max((until for until in waits if until > now), default=None)


def _after(other: Holding, patience_s: float) -> datetime:
    assert other.changed_at is not None  # it has a status
    return other.changed_at + timedelta(seconds=patience_s)


def _rank(key: Key, node_id: str) -> tuple[int, str]:
    """Return a node's place in the line for a revision: another one for each, so that the work is shared out."""
    return crc32("|".join((*key, node_id)).encode()), node_id


def _parts(models: Models, node_id: str) -> frozenset[Key]:
    """Return the latest described revisions of the models that those of this node need beside them."""
    names = {
        part
        for revision in models.revisions.values()
        if revision.described is not None and (revision.on(node_id).wanted or revision.on(node_id).status == "stored")
        for part in revision.described.parts.values()
    }
    found: dict[str, Key] = {}
    for key, revision in models.revisions.items():
        if revision.reference in names and revision.described is not None:
            found[revision.reference] = key
    return frozenset(found.values())
