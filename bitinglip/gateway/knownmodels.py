"""What is known of models, folded from the events of MODELS, kept in memory: no I/O.

Looking up whether a model is served, and what an alias stands for, is on the way of every task: both are dictionaries.
"""

from __future__ import annotations

from datetime import datetime

from bitinglip.events.envelope import Recorded
from bitinglip.events.model import (
    ModelAliasRemoved,
    ModelAliasSet,
    ModelDescribed,
    ModelDropped,
    ModelEvent,
    ModelRegistered,
    ModelStored,
    RevisionEvent,
)
from bitinglip.models.state import Key, Models, Revision, evolve


class KnownModels:
    """Every model that somebody has registered, described or asked for; and the aliases."""

    def __init__(self) -> None:
        self.models = Models()
        self._served: dict[tuple[str, str], ModelRegistered] = {}
        """What workers can run, by the reference that they serve it under, which is their queues' name, and kind."""
        self._gone: set[tuple[str, str | None]] = set()
        """Revisions that no node has any more, of those that nodes once dropped, by name and revision."""
        self._stands_for: dict[str, str] = {}
        """References by what stands for them: aliases, and names at a branch or tag."""
        self._newest: dict[str, str] = {}
        """The revision that a name alone means, by the name: of those described, the last one."""
        self._heard_at: dict[Key, datetime] = {}
        """When each revision was first heard of."""

    def resolve(self, model: str) -> str:
        """Return `name@commit` for an alias, or for a branch that is known to lead there; else the name as it is."""
        return self._stands_for.get(model, model)

    def serves(self, model: str, kind: str) -> bool:
        """Tell whether some worker has registered what the name stands for, for this kind, and it was not dropped."""
        event = self._served.get((self.resolve(model), kind))
        return event is not None and (event.reference.partition("@")[0], event.revision) not in self._gone

    def served_as(self, kind: str) -> list[str]:
        """Return the names of the models that workers have registered for a kind."""
        return sorted({event.reference for (_, served), event in self._served.items() if served == kind})

    def find(self, reference: str) -> list[Revision]:
        """Return all revisions that an alias, `name@revision` or `name` can mean."""
        name, _, revision = self.resolve(reference).partition("@")
        if revision:
            found = self.models.revisions.get((name, revision))
            return [] if found is None else [found]
        return self.models.of(name)

    def current(self, reference: str) -> Revision | None:
        """Return the one revision that an alias, `name@revision` or `name` means; none if nothing is known of it."""
        found = self.find(reference)
        newest = self._newest.get(reference)
        return next((each for each in found if each.revision == newest), found[-1] if found else None)

    def served(self) -> list[ModelRegistered]:
        """Return what workers can run, as they registered it."""
        return list(self._served.values())

    def heard_at(self, reference: str, revision: str | None) -> datetime | None:
        """Return when a revision was first heard of."""
        return self._heard_at.get((reference.partition("@")[0], revision or ""))

    def aliases_of(self, reference: str, revision: str) -> list[str]:
        """Return the aliases that stand for a revision."""
        known = self.models.aliases.values()
        return sorted(each.name for each in known if (each.model, each.revision) == (reference, revision))

    def is_served(self, reference: str) -> bool:
        """Tell whether a worker has registered a model under this very name, for whatever kind."""
        return any(name == reference for name, _ in self._served)

    def fold(self, recorded: Recorded) -> None:
        """Take one more event of MODELS; what is none about a model changes nothing."""
        event = recorded.event
        if not isinstance(event, ModelEvent):
            return
        self.models = evolve(self.models, event, recorded.time, recorded.sequence)
        if isinstance(event, ModelRegistered | RevisionEvent):
            self._heard_at.setdefault((event.reference.partition("@")[0], event.revision or ""), recorded.time)
        match event:
            case ModelRegistered():
                self._register(event)
            case ModelDescribed():
                self._describe(event)
            case ModelStored():
                self._gone.discard((event.reference, event.revision))
            case ModelDropped():
                left = self.models.get(event.reference, event.revision).holdings.values()
                if all(holding.status == "absent" for holding in left):
                    self._gone.add((event.reference, event.revision))
            case ModelAliasSet():
                self._stands_for[event.reference] = f"{event.model}@{event.revision}"
            case ModelAliasRemoved():
                self._stands_for.pop(event.reference, None)
            case _:
                pass

    def _register(self, event: ModelRegistered) -> None:
        self._served[event.reference, event.kind] = event
        self._gone.discard((event.reference.partition("@")[0], event.revision))
        self._stands_for.pop(event.reference, None)  # a worker that serves a branch has a queue of that name

    def _describe(self, event: ModelDescribed) -> None:
        asked = f"{event.reference}@{event.asked_revision}"
        if event.asked_revision not in (None, event.revision) and not self.is_served(asked):
            self._stands_for[asked] = f"{event.reference}@{event.revision}"
        if event.asked_revision in (None, "main") or event.reference not in self._newest:
            self._newest[event.reference] = event.revision
