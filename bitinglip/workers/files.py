"""The files of running tasks: inputs from the object store to disk, results from disk to the object store.

The engine process has no connection to the log: it reads and writes files in a folder that is the worker's own, and is
emptied after each batch, and at the start, should a worker have died.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from bitinglip.errors import NoServer
from bitinglip.events import artifacts
from bitinglip.events.connection import Connection
from bitinglip.tasks.parameters import ARTIFACT_FORM, PARAMETERS, media_in
from bitinglip.workers.engine import FILE

log = logging.getLogger(__name__)

RETRY_S = 0.5
"""Pause between tries while the server is away."""
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
            digest = text.removeprefix(ARTIFACT_FORM)
            path = self.folder / f"in-{digest}"
            if not path.exists():
                await self._patiently(lambda digest=digest, path=path: self._get(digest, path))
            paths[text] = str(path)
        return paths

    async def store(self, result: Any) -> Any:
        """Return a result with its files stored, and in the place of each its digest, size and media type.

        Raises:
            NoServer: the server went away while the worker is being stopped.
            OSError: the engine named a file that cannot be read.
        """
        if not _has_files(result):
            return result
        if isinstance(result, list):
            return [await self.store(item) for item in cast("list[Any]", result)]
        part = cast("dict[str, Any]", result)
        if FILE not in part:
            return {name: await self.store(value) for name, value in part.items()}
        path = Path(part[FILE])
        reference = await self._patiently(lambda: artifacts.put_file(self._connection, path, part["media_type"]))
        return reference.model_dump() | {
            name: value for name, value in part.items() if name not in {FILE, "media_type"}
        }

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

    async def _patiently(self, work: Callable[[], Any]) -> Any:
        """Wait for a server that is away, unless the worker is being stopped."""
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
