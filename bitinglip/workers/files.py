"""The files of running tasks: inputs from the object store to disk, results from disk to the object store.

The engine process has no connection to the log: it reads and writes files in a folder that is the worker's own, and is
emptied after each batch, and at the start, should a worker have died.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from bitinglip.errors import NoServer
from bitinglip.events import artifacts
from bitinglip.events.connection import Connection
from bitinglip.events.task import ArtifactRef
from bitinglip.tasks.media import read_data_url
from bitinglip.tasks.parameters import ARTIFACT_FORM, PARAMETERS, media_in
from bitinglip.tasks.privacy import FILE as FILE_ROLE
from bitinglip.workers.attempt import Attempt
from bitinglip.workers.engine import FILE

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause between tries while the server is away."""
Put = Callable[[Path, str], Awaitable[ArtifactRef]]
"""Stores a file of a media type."""
_NESTED = frozenset({dict, list})


class Files:
    """The folder of one worker."""

    def __init__(self, connection: Connection, folder: Path, stopping: Callable[[], bool]) -> None:
        self.folder = folder
        self._connection = connection
        self._stopping = stopping
        self._clearing = asyncio.Lock()

    async def fetch(self, kind: str, params: dict[str, Any]) -> dict[str, str]:
        """Bring the artifacts that a task's parameters name; returns their paths by the parameters' texts.

        Raises:
            ArtifactNotFound, ArtifactExpired: there are no such bytes.
            NoServer: the server went away while the worker is being stopped.
        """
        paths: dict[str, str] = {}
        for _, _, text in media_in(PARAMETERS[kind], params):
            path = self._path_of(text)
            if text.startswith("data:"):
                await asyncio.to_thread(path.write_bytes, read_data_url(text)[0])
            elif not path.exists():
                digest = text.removeprefix(ARTIFACT_FORM)
                await self.patiently(lambda digest=digest, path=path: self._get(digest, path))
            paths[text] = str(path)
        return paths

    def _path_of(self, text: str) -> Path:
        name = hashlib.sha256(text.encode()).hexdigest() if text.startswith("data:") else text
        return self.folder / f"in-{name.removeprefix(ARTIFACT_FORM)}"

    async def store(self, result: Any, put: Put | None = None) -> Any:
        """Return a result with its files stored, and in the place of each its digest, size and media type.

        `put` stores one file; none: as it is.

        Raises:
            NoServer: the server went away while the worker is being stopped.
            OSError: the engine named a file that cannot be read.
        """
        if not _has_files(result):
            return result
        if isinstance(result, list):
            return [await self.store(item, put) for item in cast("list[Any]", result)]
        part = cast("dict[str, Any]", result)
        if FILE not in part:
            return {name: await self.store(value, put) for name, value in part.items()}
        path, media_type = Path(part[FILE]), part["media_type"]
        if put is None:
            reference = await self.patiently(lambda: artifacts.put_file(self._connection, path, media_type))
        else:
            reference = await self.patiently(lambda: put(path, media_type))
        return reference.model_dump(exclude={"encrypted"}) | {
            name: value for name, value in part.items() if name not in {FILE, "media_type"}
        }

    def sealing(self, attempt: Attempt, stored: list[str]) -> Put | None:
        """Return what stores a private task's files, and notes their digests; none for a task that is not private."""
        key = attempt.key
        if key is None:
            return None

        async def put(path: Path, media_type: str) -> ArtifactRef:
            body = await asyncio.to_thread(path.read_bytes)
            reference = await artifacts.put_sealed(self._connection, key, attempt.id, FILE_ROLE, body, media_type)
            stored.append(reference.sha256)
            return reference.model_copy(update={"size_bytes": len(body)})

        return put

    async def clear(self) -> None:
        """Remove all files. Batches of a kind whose tasks join one another may end together: one of them at a time."""
        async with self._clearing:
            if self.folder.exists():
                await asyncio.to_thread(shutil.rmtree, self.folder)
            self.folder.mkdir(parents=True, mode=0o700)

    async def tidy(self) -> None:
        """Remove all files, if there are any: after most batches there are none, and a look is all that it costs."""
        if not self.folder.exists() or any(self.folder.iterdir()):
            await self.clear()

    async def _get(self, digest: str, path: Path) -> Any:
        part = path.with_suffix(".part")
        reference = await artifacts.get_file(self._connection, digest, part)
        part.rename(path)
        return reference

    async def patiently(self, work: Callable[[], Any]) -> Any:
        """Do something with the object store, and wait for a server that is away.

        Raises:
            NoServer: the server went away while the worker is being stopped.
        """
        while True:
            try:
                return await work()
            except NoServer as error:
                if self._stopping():
                    raise
                log.debug("the object store is away: %s", error)
                await asyncio.sleep(RETRY_S)


def _has_files(result: Any) -> bool:
    """Tell whether there is a file in a result; most have none, and some have thousands of numbers."""
    if isinstance(result, dict):
        part = cast("dict[str, Any]", result)
        return FILE in part or any(map(_has_files, part.values()))
    if isinstance(result, list):
        items = cast("list[Any]", result)
        return not _NESTED.isdisjoint(map(type, items)) and any(map(_has_files, items))
    return False
