"""A node's models: what is wished of them in the log is made so on its disk, one thing after the other for each.

Nothing is remembered but what the log and the disk say: an agent that was killed goes on where it was. What is to be
done next is decided in `modelplan`; how it is done is in `modelwork`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bitinglip.errors import BitingLipError
from bitinglip.events.ending import CLEANING_S, end
from bitinglip.events.log import EventLog
from bitinglip.events.model import IMPORT, ModelDropped, ModelStored
from bitinglip.models.eviction import Stored
from bitinglip.models.sharing import Sharing
from bitinglip.models.state import Key
from bitinglip.settings import Settings
from bitinglip.workers.modeldisk import ModelDisk
from bitinglip.workers.modelplan import Action, Check, Fetch, Remove, TakeIn, Tell, to_do
from bitinglip.workers.modelwishes import Wishes
from bitinglip.workers.modelwork import ModelWork, Work

log = logging.getLogger("bitinglip.node")

SORE_S = 30.0
"""What went wrong in a way that nobody foresaw is not tried again for so long."""
LONG_S = 3600.0


@dataclass(slots=True)
class _Doing:
    """What is being done about a revision."""

    action: Action
    work: Work
    task: asyncio.Task[None]


class ModelKeeper:
    """Makes a node's disk what the log wishes it to be."""

    def __init__(self, event_log: EventLog, settings: Settings, node_id: str, changed: Callable[[], None]) -> None:
        """`changed` is called whenever a model has come or gone."""
        self._log = event_log
        self._settings = settings.models
        self._node_id = node_id
        self._changed = changed
        self._wake = asyncio.Event()
        self.disk = ModelDisk(settings.models, settings.models_dir)
        self.wishes = Wishes(event_log, self._wake.set)
        self._work = ModelWork(event_log, settings, node_id, self.wishes, self.disk, changed)
        host = settings.models.share_host
        self.shares = settings.models.share
        self.sharing = Sharing(
            self.disk.cache_dir,
            lambda: host or event_log.connection.local_host,
            settings.models.share_port,
            settings.models_dir,
        )
        self._doing: dict[Key, _Doing] = {}
        self._sore: dict[Key, float] = {}
        self._runner: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Put the store in order, read what is wished, and begin.

        Raises:
            NoServer, ProjectionBehind: the log cannot be read.
        """
        await asyncio.to_thread(self.disk.heal)
        await self.wishes.open()
        self._runner = asyncio.create_task(self._run(), name="model-keeper")

    async def close(self) -> None:
        """Do nothing more; what is under way is left for the next agent."""
        await end(lambda: [self._runner])
        await end(lambda: [doing.task for doing in self._doing.values()], CLEANING_S)
        await self.sharing.close()
        await self.wishes.close()

    async def stored(self) -> list[Stored]:
        """Return what is on the disk, and what of it may go."""
        return await self._work.room.stored()

    async def evict(self, key: Key) -> bool:
        """Drop a revision, unless somebody has it in memory; tells whether it is gone."""
        return await self._work.room.evict(key)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                wait_s = await self._step()
            except (BitingLipError, OSError) as error:
                log.warning("the store of models cannot be read: %s", error)
                wait_s = SORE_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()

    async def _step(self) -> float:
        """Begin what is to be done, and end what is not wished any more; returns when to look again, in seconds."""
        disk = await asyncio.to_thread(self.disk.look)
        now = self._log.clock()
        actions = {
            _key(action): action
            for action in to_do(self.wishes.models, disk, self._node_id, now, peers=self._settings.share)
        }
        for key, doing in self._doing.items():
            if isinstance(doing.action, Fetch) and not isinstance(actions.get(key), Fetch | Tell):
                doing.work.stop()
        for key, action in actions.items():
            if key not in self._doing and self._may_begin(key, action):
                self._begin(key, action)
        later = [action for action in actions.values() if isinstance(action, Fetch) and action.not_before is not None]
        return min([LONG_S, *self._sore_for(), *[_seconds(action.not_before, now) for action in later]])

    def _may_begin(self, key: Key, action: Action) -> bool:
        if self._sore.get(key, 0.0) > asyncio.get_running_loop().time():
            return False
        if not isinstance(action, Fetch):
            return True
        fetching = sum(isinstance(doing.action, Fetch) for doing in self._doing.values())
        return action.not_before is None and fetching < self._settings.parallel

    def _begin(self, key: Key, action: Action) -> None:
        work = Work(key, {"HF_HUB_OFFLINE": "1"} if self._settings.offline else {})
        task = asyncio.create_task(self._do(key, work, self._deed(action, work)), name=f"models-{key[0]}")
        self._doing[key] = _Doing(action, work, task)

    async def _do(self, key: Key, work: Work, deed: Coroutine[Any, Any, None]) -> None:
        try:
            await deed
        except Exception:  # a defect must not have it tried without a pause
            log.exception("nothing came of %s at %s; it is tried again in %g s", *key, SORE_S)
            self._sore[key] = asyncio.get_running_loop().time() + SORE_S
        finally:
            del self._doing[key]
            self._wake.set()
            if work.changed:
                self._changed()

    def _deed(self, action: Action, work: Work) -> Coroutine[Any, Any, None]:
        match action:
            case Fetch():
                return self._work.fetch(work)
            case Remove(tell=tell):
                return self._work.remove(work, tell=tell)
            case Check(repair=repair):
                return self._work.check(work, repair=repair)
            case TakeIn(path=path):
                return self._work.take_in(work, path)
            case Tell(what=what):
                return self._tell(work, stored=what == "stored")

    async def _tell(self, work: Work, *, stored: bool) -> None:
        """Tell the log of a revision that is there, or of one that somebody else took away."""
        reference, revision = work.key
        work.changed = True
        mark = await asyncio.to_thread(self.disk.mark, work.key)
        about: dict[str, Any] = {"reference": reference, "revision": revision, "node_id": self._node_id}
        if mark is not None and stored:
            size = mark.size_bytes
            event = ModelStored(**about, source=mark.source, size_bytes=size, files=list(mark.files))
            await self.wishes.tell(event)
        elif mark is None and not stored:
            await self.wishes.tell(ModelDropped(**about, freed_bytes=0, reason="missing"))

    def _sore_for(self) -> list[float]:
        now = asyncio.get_running_loop().time()
        self._sore = {key: until for key, until in self._sore.items() if until > now}
        return [until - now for until in self._sore.values()]


def _key(action: Action) -> Key:
    return (action.reference, IMPORT) if isinstance(action, TakeIn) else action.key


def _seconds(until: datetime | None, now: datetime) -> float:
    return 0.0 if until is None else max(0.05, (until - now).total_seconds())
