"""What this gateway knows of models: a fold over the MODELS stream, kept in memory.

Looking up whether a model is served, and what an alias stands for, is on the way of every task: both are dictionaries.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing, suppress
from datetime import datetime

from bitinglip.errors import CorruptEvent, ProjectionBehind
from bitinglip.events import subjects
from bitinglip.events.envelope import Messages, Recorded, decode
from bitinglip.events.log import EventLog
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
from bitinglip.events.streams import MODELS
from bitinglip.models.state import Key, Models, Revision, evolve

log = logging.getLogger(__name__)

CATCH_UP_S = 5.0


class Catalogue:
    """Every model that somebody has registered, described or asked for; and the aliases."""

    def __init__(self, event_log: EventLog) -> None:
        self.models = Models()
        self.turn = asyncio.Lock()
        """Held from reading what is known until what was decided on it is known too: wishes are written one by one."""
        self.asking: dict[str, asyncio.Task[Revision]] = {}
        """What the hub is asked for now, by reference."""
        self._log = event_log
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
        self.applied = 0
        """Sequence of the last event that is known."""
        self._moved = asyncio.Condition()
        self._follower: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, event_log: EventLog) -> Catalogue:
        """Read what the log knows by now, and follow it from there.

        Raises:
            NoServer: the log cannot be read.
        """
        catalogue = cls(event_log)
        catalogue._follower = asyncio.create_task(catalogue._follow(), name="catalogue")
        try:
            await catalogue.catch_up()
        except BaseException:
            await catalogue.close()
            raise
        return catalogue

    async def close(self) -> None:
        """Stop following the log."""
        if self._follower is not None:
            self._follower.cancel()
            with suppress(asyncio.CancelledError):
                await self._follower

    # --- on the way of a task -----------------------------------------------------------------------------------------

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

    # --- what is known ------------------------------------------------------------------------------------------------

    async def knows(self, reference: str) -> bool:
        """Tell whether any worker has registered it, for whatever kind.

        Raises:
            NoServer: it is not known here, and the log cannot be asked.
        """
        if not self.is_served(reference):
            await self.catch_up()
        return self.is_served(reference)

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

    async def catch_up(self) -> None:
        """Wait until all is known that the log holds by now.

        Raises:
            NoServer: the log cannot be asked.
            ProjectionBehind: it takes too long.
        """
        last = await self._log.read_last(MODELS, subjects.MODELS)
        if last is not None:
            await self.reach(last.sequence)

    async def reach(self, sequence: int) -> None:
        """Wait until the event at this sequence is known.

        Raises:
            ProjectionBehind: it takes too long.
        """
        try:
            async with asyncio.timeout(CATCH_UP_S), self._moved:
                await self._moved.wait_for(lambda: self.applied >= sequence)
        except TimeoutError as error:
            raise ProjectionBehind(sequence=sequence, applied=self.applied) from error

    async def tell(self, event: ModelEvent) -> int:
        """Put a fact about a model into the log; when this returns, it is known here.

        Raises:
            NoServer, StreamFull: the log does not take it now.
            ProjectionBehind: it is in the log, and this gateway is slow to hear of it.
        """
        subject = subjects.model_subject(event.reference, event.type.removeprefix("model."))
        sequence = await self._log.append(self._log.fact_append(event, subject, event.reference))
        await self.reach(sequence)
        return sequence

    async def moved(self, after: int) -> int:
        """Wait until more is known than up to a sequence; returns up to which."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.applied > after)
            return self.applied

    def is_served(self, reference: str) -> bool:
        """Tell whether a worker has registered a model under this very name, for whatever kind."""
        return any(name == reference for name, _ in self._served)

    # --- following ----------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        async with aclosing(self._log.tail(MODELS, 0)) as batches:
            async for batch in batches:
                await self._apply(batch)

    async def _apply(self, batch: Messages) -> None:
        for message in batch:
            try:
                recorded = decode(message, MODELS)
            except CorruptEvent as error:
                log.error("passed over: %s", error)  # noqa: TRY400  (the message says where)
                continue
            if isinstance(recorded.event, ModelEvent):
                self._fold(recorded, recorded.event)
        async with self._moved:
            self.applied = batch[-1].sequence
            self._moved.notify_all()

    def _fold(self, recorded: Recorded, event: ModelEvent) -> None:
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
