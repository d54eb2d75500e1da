"""The models that were uploaded to this gateway: told of as a node tells of its own, and kept until nodes have them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path
from typing import Literal

from bitinglip import __version__
from bitinglip.errors import BitingLipError, ModelInUse
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.ending import end
from bitinglip.events.model import ModelDescribed, ModelDropped, ModelKept, ModelStored
from bitinglip.events.service import CommandService
from bitinglip.gateway.catalogue import Catalogue
from bitinglip.ids import Ulids
from bitinglip.models import snapshots
from bitinglip.models.holders import gateway_name, is_over
from bitinglip.models.sharing import COMMAND, Sharing
from bitinglip.models.state import Key, Revision
from bitinglip.models.uploads import Upload, Uploads
from bitinglip.settings import Settings

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""After which what could not be dropped, or told, is tried again."""
GIB = 2**30
SERVICE, ABOUT = "bitinglip-gateway", "A gateway of a BitingLip cluster: it hands out what was uploaded to it."
ID_FILE = "gateway-id"
Reason = Literal["removed", "evicted", "missing"]


class Uploaded:
    """What this gateway has of models, for as long as nodes need it."""

    def __init__(self, store: Uploads, sharing: Sharing, node_id: str, catalogue: Catalogue) -> None:
        self.store = store
        self._sharing = sharing
        self.node_id = node_id
        self._catalogue = catalogue
        self._held: set[Key] = set()
        self._untold: dict[Key, tuple[int, Reason]] = {}
        """What was dropped and is not told yet: the bytes that this freed, and why."""
        self._settling = asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None
        self._service: CommandService | None = None

    async def start(self, connection: Connection) -> None:
        """Put in order what a former life has left, go on with it, and hand out what is here to nodes that ask.

        Raises:
            NoServer: the connection is away.
        """
        await asyncio.to_thread(self._heal)
        metadata = {"node_id": self.node_id}
        self._service = await CommandService.open(connection, SERVICE, __version__, ABOUT, metadata)
        await self._service.take(COMMAND, subjects.node_command(self.node_id, COMMAND), self._sharing.offer)
        self._follower = asyncio.create_task(self._follow(), name="uploads")

    async def close(self) -> None:
        """Leave everything as it is."""
        await end(lambda: [self._follower])
        if self._service is not None:
            await self._service.close()
        await self._sharing.close()

    async def complete(self, upload: Upload, by: str | None) -> Revision:
        """Mark an upload as whole, and tell what it is and that it is here.

        Raises:
            UploadIncomplete, BrokenModel: as `Uploads.complete` says.
            NoServer, StreamFull: the log does not take it now; the upload is to be completed once more.
        """
        told = await asyncio.to_thread(self.store.complete, upload)
        key = (told.reference, told.revision)
        async with self._catalogue.turn:
            await self._catalogue.catch_up()
            self._held.add(key)
            if self._catalogue.models.get(*key).described is None:
                await self._catalogue.tell(told.model_copy(update={"by": by}))
            if self._catalogue.models.get(*key).on(self.node_id).status != "stored":
                await self._catalogue.tell(self._stored(told))
        return self._catalogue.models.get(*key)

    async def drop(self, upload: Upload) -> int:
        """Forget an upload; returns the bytes that this freed.

        Raises:
            ModelInUse: files of it are just being sent, or handed out.
            NoServer, StreamFull: it is gone, and the log does not take that now.
        """
        freed = await asyncio.to_thread(self.store.drop, upload)
        self._gone((upload.place.reference, upload.place.revision), freed, "evicted")
        await self._settle()
        return freed

    # --- until nodes have it ------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        snapshots.heal(self.store.folder)
        self._held = {(mark.reference, mark.revision) for mark in snapshots.marks(self.store.folder)}

    async def _follow(self) -> None:
        seen = 0
        while True:
            try:
                await self._settle()
                wait_s = None
            except BitingLipError as error:
                log.debug("not settled yet: %s", error)
                wait_s = RETRY_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    seen = await self._catalogue.moved(seen)

    async def _settle(self) -> None:
        """Drop what is needed here no more, and tell what is gone."""
        async with self._settling:
            ours = [each for each in self._catalogue.models.revisions.values() if self.node_id in each.holdings]
            for revision in ours:
                if (revision.reference, revision.revision) in self._held:
                    await self._let_go(revision)
            for revision in ours:
                await self._tell_if_gone(revision)

    async def _let_go(self, revision: Revision) -> None:
        key, status = (revision.reference, revision.revision), revision.on(self.node_id).status
        if not (status == "removing" or (status == "stored" and is_over(revision))):
            return
        try:
            freed = await asyncio.to_thread(snapshots.drop, self.store.folder, *key)
        except ModelInUse as error:
            if status != "removing":
                raise
            await self._catalogue.tell(ModelKept(**_named(key), node_id=self.node_id, problem=str(error)))
        else:
            log.info("%s at %s is not kept here any more", *key)
            self._gone(key, freed, "removed" if status == "removing" else "evicted")

    def _gone(self, key: Key, freed: int, reason: Reason) -> None:
        self._held.discard(key)
        self._untold[key] = (freed, reason)

    async def _tell_if_gone(self, revision: Revision) -> None:
        key = (revision.reference, revision.revision)
        if key in self._held or revision.on(self.node_id).status not in {"stored", "removing"}:
            return
        freed, reason = self._untold.get(key, (0, "missing"))
        await self._catalogue.tell(ModelDropped(**_named(key), node_id=self.node_id, freed_bytes=freed, reason=reason))
        self._untold.pop(key, None)

    def _stored(self, told: ModelDescribed) -> ModelStored:
        return ModelStored(
            reference=told.reference,
            revision=told.revision,
            node_id=self.node_id,
            source="upload",
            size_bytes=told.size_bytes,
            files=told.files,
        )


async def open_uploaded(settings: Settings, connection: Connection, catalogue: Catalogue) -> Uploaded:
    """Open what a gateway has of uploads.

    Raises:
        NoServer: the connection is away.
    """
    most, free = settings.gateway.max_model_gb * GIB, settings.models.min_free_gb * GIB
    store = Uploads(settings.uploads_dir, round(most), round(free))
    host = settings.models.share_host
    sharing = Sharing(settings.uploads_dir, lambda: host or connection.local_host, settings.gateway.share_port)
    uploaded = Uploaded(store, sharing, await asyncio.to_thread(name_of, settings.data_dir), catalogue)
    await uploaded.start(connection)
    return uploaded


def name_of(data_dir: Path) -> str:
    """Return the name that this gateway has among those who hold models: made once, and kept."""
    file = data_dir / ID_FILE
    if not file.exists():
        data_dir.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{ID_FILE}.tmp")
        part.write_text(gateway_name(Ulids()()), "utf-8")
        part.replace(file)
    return file.read_text("utf-8").strip()


def _named(key: Key) -> dict[str, str]:
    return {"reference": key[0], "revision": key[1]}
