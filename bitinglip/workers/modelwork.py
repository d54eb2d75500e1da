"""How a node does what is to be done about a model: fetch it, make room for it, drop it, check it, take it in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from bitinglip.errors import BitingLipError, CheckFailed, NoRoom
from bitinglip.events.log import EventLog
from bitinglip.events.model import (
    IMPORT,
    ModelChecked,
    ModelDescribed,
    ModelDropped,
    ModelFetchFailed,
    ModelFetchStarted,
    ModelFetchStopped,
    ModelKept,
    ModelStored,
)
from bitinglip.models.imports import FolderJob
from bitinglip.models.layout import MAIN
from bitinglip.models.protocol import Checked, CheckJob, Failed, FetchJob, Line, PeerSource, Progress, Stored
from bitinglip.models.state import Key
from bitinglip.settings import Settings
from bitinglip.workers.modelchild import ModelChild
from bitinglip.workers.modeldisk import ModelDisk
from bitinglip.workers.modelpeers import ModelPeers
from bitinglip.workers.modelroom import ModelRoom
from bitinglip.workers.modelticks import FetchTicks
from bitinglip.workers.modelwishes import Wishes

log = logging.getLogger("bitinglip.node")

FETCH, CHECK, IMPORTS = "bitinglip.models.fetch", "bitinglip.models.check", "bitinglip.models.imports"
BACKOFF_S = (2.0, 5.0, 15.0, 60.0, 300.0)
"""When a fetch that failed is tried again, if it does not say itself that it takes longer."""


class Work:
    """Something that is being done about a revision; a fetch can be stopped."""

    def __init__(self, key: Key, environ: Mapping[str, str]) -> None:
        """`environ`: what its processes have in their environment besides."""
        self.key = key
        self._environ = environ
        self.changed = False
        """Whether a model has come or gone by it."""
        self.left_bytes = 0
        """What a fetch has yet to bring."""
        self.total_bytes = 0
        self._child: ModelChild | None = None
        self._stopped = False

    def child(self, module: str) -> ModelChild:
        """Return a process for it, which it stops with."""
        self._child = ModelChild(module, self._environ)
        if self._stopped:
            self._child.stop()
        return self._child

    def heard_by(self, hear: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return what is to be called with its progress: it counts what is left, and passes the progress on."""

        def heard(progress: Progress) -> None:
            self.left_bytes = progress.total_bytes - progress.done_bytes
            hear(progress)

        return heard

    def stop(self) -> None:
        """End it soon; what it has done stays."""
        if not self._stopped:
            self._stopped = True
            if self._child is not None:
                self._child.stop()


class ModelWork:
    """Does it, and tells the log."""

    def __init__(
        self,
        event_log: EventLog,
        settings: Settings,
        node_id: str,
        wishes: Wishes,
        disk: ModelDisk,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever a model has gone to make room."""
        self._log = event_log
        self._settings = settings
        self._node_id = node_id
        self._wishes = wishes
        self._disk = disk
        self._fetches: dict[Key, Work] = {}
        self._failures: dict[Key, int] = {}
        self.room = ModelRoom(event_log.clock, node_id, wishes, disk, changed)
        self.peers = ModelPeers(event_log.connection, settings.models, node_id)

    # --- fetch --------------------------------------------------------------------------------------------------------

    async def fetch(self, work: Work) -> None:
        """Bring a revision: make room, ask other nodes for it, then the hub."""
        key = work.key
        described = self._wishes.models.get(*key).described
        assert described is not None
        self._fetches[key] = work
        try:
            work.total_bytes = described.size_bytes
            missing = work.left_bytes = await asyncio.to_thread(self._disk.missing_bytes, key, described.files)
            try:
                await self.room.make(key[0], self._coming)
            except NoRoom as error:
                await self._fail(key, Failed.of(error))
                return
            started = ModelFetchStarted(
                **self._about(key),
                files=len(described.files),
                total_bytes=described.size_bytes,
                missing_bytes=missing,
            )
            await self._wishes.tell(started)
            ticks = FetchTicks(self._wishes, self._node_id, key, self._settings.log.tick_ttl_s)
            async with ticks.telling() as hear:
                job = self._job(described, await self.peers.ask(self._wishes.models.get(*key)))
                outcome = await work.child(FETCH).run(job, work.heard_by(hear))
        finally:
            del self._fetches[key]
        await self._end_fetch(work, outcome)

    def _coming(self) -> tuple[int, int]:
        left = sum(each.left_bytes for each in self._fetches.values())
        return left, sum(each.total_bytes for each in self._fetches.values()) - left

    def _job(self, described: ModelDescribed, peers: tuple[PeerSource, ...]) -> FetchJob:
        return FetchJob(
            reference=described.reference,
            revision=described.revision,
            asked_revision=described.asked_revision or (MAIN if described.source == "import" else None),
            source=described.source,
            cache_dir=self._disk.cache_dir,
            endpoint=self._settings.models.endpoint,
            files=tuple(described.files),
            peers=peers,
            min_free_bytes=self._disk.room.min_free_bytes,
        )

    async def _end_fetch(self, work: Work, outcome: Line) -> None:
        if outcome.stored is not None:
            self._failures.pop(work.key, None)
            work.changed = True
            await self._wishes.tell(self._stored(work.key, outcome.stored))
        elif outcome.failed is not None:
            await self._fail(work.key, outcome.failed)
        elif outcome.stopped is not None and self._status(work.key) == "stopped":
            stopped = ModelFetchStopped(**self._about(work.key), done_bytes=outcome.stopped.done_bytes)
            await self._wishes.tell(stopped)

    def _stored(self, key: Key, stored: Stored) -> ModelStored:
        described = self._wishes.models.get(*key).described
        return ModelStored(
            **self._about(key),
            source=described.source if described else "hub",
            size_bytes=sum(file.size_bytes for file in stored.files),
            hub_bytes=stored.hub_bytes,
            peer_bytes=stored.peer_bytes,
            took_s=round(stored.took_s, 3),
            files=list(stored.files),
        )

    async def _fail(self, key: Key, failed: Failed) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause_s = max(failed.retry_after_s or 0.0, BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])
        log.warning("%s at %s is not fetched: %s", *key, failed.message)
        await self._wishes.tell(
            ModelFetchFailed(
                **self._about(key),
                code=failed.code,
                message=failed.message,
                remedy=failed.remedy,
                retry_in_s=pause_s if failed.retryable else None,
            )
        )

    # --- remove, check ------------------------------------------------------------------------------------------------

    async def remove(self, work: Work, *, tell: bool) -> None:
        """Drop a revision, or what is there of it, unless somebody has it in memory."""
        work.changed = True
        try:
            freed = await asyncio.to_thread(self._disk.drop, work.key)
        except BitingLipError as error:
            if tell:
                await self._wishes.tell(ModelKept(**self._about(work.key), problem=str(error)))
            return
        if tell:
            await self._wishes.tell(ModelDropped(**self._about(work.key), freed_bytes=freed, reason="removed"))

    async def check(self, work: Work, *, repair: bool) -> None:
        """Compare a revision with its digests, and bring what is damaged or missing if it is to be repaired."""
        own = await asyncio.to_thread(self._disk.was_taken_in, work.key)
        checked = await self._compare(work, repair, own=own)
        bad = bool(checked.missing or checked.damaged)
        to_mend = bad and repair and self._wishes.models.get(*work.key).described is not None
        repaired = to_mend and await (self._replace(work) if own else self._repair(work))
        if to_mend and not repaired and not own:  # it is fetched as soon as that is possible
            await asyncio.to_thread(self._disk.unmark, work.key)
            await self._wishes.tell(ModelDropped(**self._about(work.key), freed_bytes=0, reason="damaged"))
        await self._wishes.tell(
            ModelChecked(
                **self._about(work.key),
                files=checked.files,
                checked_bytes=checked.checked_bytes,
                missing=list(checked.missing),
                damaged=list(checked.damaged),
                repaired=repaired,
            )
        )

    async def _compare(self, work: Work, repair: bool, *, own: bool) -> Checked:
        reference, revision = work.key
        if own:
            folder = FolderJob(reference=reference, models_dir=self._disk.models_dir)
            found = await work.child(IMPORTS).run(folder)
        else:
            cache_dir = self._disk.cache_dir
            job = CheckJob(reference=reference, revision=revision, cache_dir=cache_dir, drop_damaged=repair)
            found = await work.child(CHECK).run(job)
        if found.checked is None:
            raise CheckFailed(reference=reference, problem=found.failed.message if found.failed else "It was stopped.")
        return found.checked

    async def _repair(self, work: Work) -> bool:
        revision = self._wishes.models.get(*work.key)
        assert revision.described is not None
        job = self._job(revision.described, await self.peers.ask(revision))
        outcome = await work.child(FETCH).run(job)
        work.changed = True
        if outcome.failed is not None:
            log.warning("%s at %s is not repaired: %s", *work.key, outcome.failed.message)
        return outcome.stored is not None

    async def _replace(self, work: Work) -> bool:
        """Have another node's copy in the place of a folder that was taken in here; without one it stays as it is."""
        key = work.key
        described = self._wishes.models.get(*key).described
        assert described is not None
        self._fetches[key] = work
        try:
            missing = await asyncio.to_thread(self._disk.missing_bytes, key, described.files)
            work.left_bytes = work.total_bytes = missing
            await self.room.make(key[0], self._coming)
            replaced = await self._repair(work)
        except NoRoom as error:
            log.warning("%s at %s is not repaired: %s", *key, error)
            return False
        finally:
            del self._fetches[key]
        if replaced:
            await asyncio.to_thread(self._disk.drop_folder, key)
        return replaced

    # --- import -------------------------------------------------------------------------------------------------------

    async def take_in(self, work: Work, path: str) -> None:
        """Copy a folder of this machine into the models directory."""
        reference, _ = work.key
        job = FolderJob(reference=reference, models_dir=self._disk.models_dir, path=path)
        outcome = await work.child(IMPORTS).run(job)
        if (described := outcome.described) is not None:
            work.changed = True
            await self._wishes.tell(described)
            about, size = self._about((reference, described.revision)), described.size_bytes
            stored = ModelStored(**about, source="import", size_bytes=size, files=described.files)
            await self._wishes.tell(stored)
        elif (failed := outcome.failed) is not None:
            told = {"code": failed.code, "message": failed.message, "remedy": failed.remedy}
            await self._wishes.tell(ModelFetchFailed(**self._about((reference, IMPORT)), **told, retry_in_s=None))

    # --- words --------------------------------------------------------------------------------------------------------

    def _about(self, key: Key) -> dict[str, Any]:
        return {"reference": key[0], "revision": key[1], "node_id": self._node_id}

    def _status(self, key: Key) -> str:
        return self._wishes.models.get(*key).on(self._node_id).status
