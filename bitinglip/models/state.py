"""What is wished and what is there: a fold over MODELS' events about models; pure.

Used by gateways, to answer, and by nodes, to know what they are to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from bitinglip.events.model import (
    IMPORT,
    HoldingEvent,
    ModelAliasRemoved,
    ModelAliasSet,
    ModelCheckAsked,
    ModelChecked,
    ModelDescribed,
    ModelDropped,
    ModelEvent,
    ModelFetchAsked,
    ModelFetchCancelled,
    ModelFetchFailed,
    ModelFetchProgressed,
    ModelFetchStarted,
    ModelFetchStopped,
    ModelImportAsked,
    ModelKept,
    ModelPinned,
    ModelRegistered,
    ModelRemovalAsked,
    ModelStored,
    ModelUnpinned,
)

Status = Literal["absent", "wanted", "fetching", "stored", "failed", "stopped", "removing"]
"""Of a revision on a node.

`wanted`: the node has yet to begin; `failed`: it could not, and may try again; `stopped`: it was told to stop;
`removing`: it is to drop it. A node that has nothing to do with the revision is `absent`.
"""

Key = tuple[str, str]
"""Name and revision of a model."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A revision of a model on a node."""

    node_id: str
    status: Status = "absent"
    pinned: bool = False
    asked: bool = False
    """It was asked for while it was there: it comes back if it turns out to be gone."""
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: float | None = None
    left_s: float | None = None
    stored_bytes: int = 0
    code: str | None = None
    """Of what went wrong."""
    problem: str | None = None
    remedy: str | None = None
    retry_at: datetime | None = None
    """When a fetch that failed is tried again; none: not before somebody asks anew."""
    check: Literal["check", "repair"] | None = None
    """What was asked for and is not done: to compare it with its digests, or to bring what is damaged as well."""
    checked_at: datetime | None = None
    changed_at: datetime | None = None
    sequence: int = 0
    """Of the last event that changed it."""

    @property
    def wanted(self) -> bool:
        """Whether the node is to have it, and has it not."""
        return self.status in {"wanted", "fetching", "failed"}


@dataclass(frozen=True, slots=True)
class Revision:
    """A revision of a model."""

    reference: str
    revision: str
    described: ModelDescribed | None = None
    registered: tuple[ModelRegistered, ...] = ()
    """What workers can run of it, one for each kind."""
    holdings: Mapping[str, Holding] = field(default_factory=dict[str, Holding])
    """By node."""

    def on(self, node_id: str) -> Holding:
        """Return how it is on a node."""
        return self.holdings.get(node_id) or Holding(node_id)


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that stands for a revision of a model."""

    name: str
    model: str
    revision: str
    set_at: datetime
    by: str | None
    before: tuple[Key, ...] = ()
    """What it stood for before, the latest last."""


@dataclass(frozen=True, slots=True)
class Import:
    """A folder of a node that it is to take in as a model."""

    path: str
    asked_at: datetime
    code: str | None = None
    problem: str | None = None
    """Why it could not; then it is not tried again before somebody asks anew."""
    remedy: str | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """All that MODELS tells of models; `evolve` returns the next one."""

    revisions: Mapping[Key, Revision] = field(default_factory=dict[Key, Revision])
    aliases: Mapping[str, Alias] = field(default_factory=dict[str, Alias])
    imports: Mapping[Key, Import] = field(default_factory=dict[Key, Import])
    """By the model's name and the node, those that are not done."""

    def of(self, reference: str) -> list[Revision]:
        """Return the revisions of a model, by its name."""
        return [revision for (name, _), revision in self.revisions.items() if name == reference]

    def get(self, reference: str, revision: str) -> Revision:
        """Return a revision, which may be unheard of."""
        return self.revisions.get((reference, revision)) or Revision(reference, revision)


def evolve(models: Models, event: ModelEvent, at: datetime, sequence: int) -> Models:
    """Return what is known after one more event."""
    match event:
        case ModelAliasSet():
            old = models.aliases.get(event.reference)
            before = (*old.before, (old.model, old.revision)) if old else ()
            alias = Alias(event.reference, event.model, event.revision, at, event.by, before)
            return replace(models, aliases={**models.aliases, event.reference: alias})
        case ModelAliasRemoved():
            left = {name: alias for name, alias in models.aliases.items() if name != event.reference}
            return replace(models, aliases=left)
        case ModelRegistered(revision=str() as revision):
            known = models.get(event.reference.partition("@")[0], revision)
            others = tuple(each for each in known.registered if each.kind != event.kind)
            return _with(models, replace(known, registered=(*others, event)))
        case ModelDescribed():
            return _with(models, replace(models.get(event.reference, event.revision), described=event))
        case ModelImportAsked():
            return _importing(models, event.reference, event.node_id, Import(event.path, at))
        case ModelFetchFailed(revision=revision) if revision == IMPORT:
            asked = models.imports.get((event.reference, event.node_id)) or Import("", at)
            failed = replace(asked, code=event.code, problem=event.message, remedy=event.remedy)
            return _importing(models, event.reference, event.node_id, failed)
        case (
            ModelFetchAsked()
            | ModelFetchCancelled()
            | ModelRemovalAsked()
            | ModelCheckAsked()
            | ModelPinned()
            | ModelUnpinned()
        ):
            known = models.get(event.reference, event.revision)
            asked = {node_id: _asked(known.on(node_id), event, at, sequence) for node_id in event.nodes}
            return _with(models, replace(known, holdings={**known.holdings, **asked}))
        case HoldingEvent():
            if isinstance(event, ModelStored) and event.source == "import" and not event.peer_bytes:
                models = _importing(models, event.reference, event.node_id, None)
            known = models.get(event.reference, event.revision)
            holding = _told(known.on(event.node_id), event, at, sequence)
            return _with(models, replace(known, holdings={**known.holdings, event.node_id: holding}))
        case _:
            return models


def _with(models: Models, revision: Revision) -> Models:
    return replace(models, revisions={**models.revisions, (revision.reference, revision.revision): revision})


def _importing(models: Models, reference: str, node_id: str, what: Import | None) -> Models:
    others = {key: each for key, each in models.imports.items() if key != (reference, node_id)}
    return replace(models, imports=others if what is None else {**others, (reference, node_id): what})


_Asked = ModelFetchAsked | ModelFetchCancelled | ModelRemovalAsked | ModelCheckAsked | ModelPinned | ModelUnpinned


def _asked(holding: Holding, event: _Asked, at: datetime, sequence: int) -> Holding:
    if isinstance(event, ModelCheckAsked):
        return replace(holding, check="repair" if event.repair else "check") if holding.status == "stored" else holding
    there = holding.status in {"stored", "removing"}
    asked = holding.asked
    status: Status
    match event:
        case ModelFetchAsked():
            asked = there
            status = "stored" if there else "fetching" if holding.status == "fetching" else "wanted"
            pinned = holding.pinned
        case ModelPinned():
            status = "stored" if there else "fetching" if holding.status == "fetching" else "wanted"
            pinned = True
        case ModelUnpinned():
            status, pinned = holding.status, False
        case ModelFetchCancelled():
            status, pinned = "stopped" if holding.wanted else holding.status, holding.pinned and not holding.wanted
        case ModelRemovalAsked():
            # What has yet to come may have come in part: that goes as well.
            status, pinned, asked = "absent" if holding.status == "absent" else "removing", False, False
    return replace(
        holding,
        status=status,
        pinned=pinned,
        asked=asked,
        code=None,
        problem=None,
        remedy=None,
        retry_at=None,
        changed_at=at,
        sequence=sequence,
    )


def _told(holding: Holding, event: HoldingEvent, at: datetime, sequence: int) -> Holding:
    changed = replace(holding, changed_at=at, sequence=sequence)
    match event:
        case ModelFetchStarted() | ModelFetchFailed() | ModelFetchStopped() if holding.status == "removing":
            return holding
        case ModelFetchStarted() | ModelFetchFailed() if holding.status == "stopped":
            return holding  # it was overtaken by what was asked meanwhile
        case ModelFetchStarted():
            done = event.total_bytes - event.missing_bytes
            return replace(changed, status="fetching", done_bytes=done, total_bytes=event.total_bytes, problem=None)
        case ModelFetchProgressed():
            if holding.status != "fetching":  # a tick that was overtaken
                return holding
            return replace(
                changed,
                done_bytes=event.done_bytes,
                total_bytes=event.total_bytes,
                bytes_per_s=event.bytes_per_s,
                left_s=event.left_s,
            )
        case ModelFetchFailed():
            again_at = None if event.retry_in_s is None else at + timedelta(seconds=event.retry_in_s)
            return replace(
                changed,
                status="failed",
                code=event.code,
                problem=event.message,
                remedy=event.remedy,
                retry_at=again_at,
                left_s=None,
            )
        case ModelFetchStopped():
            return replace(changed, status="stopped", done_bytes=event.done_bytes, left_s=None)
        case ModelStored():
            return replace(
                changed,
                status="removing" if holding.status == "removing" else "stored",
                asked=False,
                done_bytes=event.size_bytes,
                total_bytes=event.size_bytes,
                stored_bytes=event.size_bytes,
                bytes_per_s=None,
                left_s=None,
                code=None,
                problem=None,
                remedy=None,
                checked_at=at,
            )
        case ModelDropped():
            # A pinned one that somebody else took away, or damaged, is fetched again; and so is one that was asked for
            # while it was being removed, or was not there as we thought.
            repairs = event.reason == "damaged" and holding.check == "repair"
            back = event.reason != "evicted" and (repairs or holding.pinned or holding.asked)
            status: Status = "wanted" if back else "absent"
            return replace(
                Holding(event.node_id), status=status, pinned=holding.pinned, changed_at=at, sequence=sequence
            )
        case ModelKept():
            return replace(changed, status="stored", problem=event.problem)
        case ModelChecked():
            return replace(changed, checked_at=at, check=None)
        case _:
            return holding
