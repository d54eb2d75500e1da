"""Versions of projections made in the background, in the same file, beside those that serve; then put in their place.

A version has checkpoints of its own, so what was made of it outlives a crash. The log is read up to where the live
writer is, again and again; when little is missing the writer is held for a moment, the rest is applied, and one
transaction makes the version serve, at exactly the checkpoint of all others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from bitinglip.errors import NoServer, ProjectionNotFound
from bitinglip.events.ending import end
from bitinglip.projections import sql, versions
from bitinglip.projections.catchup import catch_up
from bitinglip.projections.database import Build, Database, WriteError
from bitinglip.projections.projector import BACKOFF_S, Projector
from bitinglip.projections.source import Source
from bitinglip.projections.sql import Catalogue
from bitinglip.projections.versions import Version
from bitinglip.settings import Projections

log = logging.getLogger(__name__)

FEW = 2_000
"""Sequences that may be missing when the live writer is held."""
ROUNDS_MOST = 20
"""After so many rounds the writer is held all the same: events come faster than they are applied."""
CANCEL_AGAIN_S = 5.0
"""Patience with a build that is to end: its transaction ends first."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class VersionState:
    """A version of a projection, as it is now."""

    projection: str
    version: str
    """Digest of the SQL that makes its rows."""
    serving: bool
    """Whether it is asked; else it is being made."""
    current: bool
    """Whether it is the version of this release."""
    rows: dict[str, int]
    """Rows of each of its tables, as DuckDB estimates them."""
    checkpoint: dict[str, int]
    """Last sequence of each of its streams that is applied to it."""


class Builder:
    """Makes the versions of one file that do not serve yet, one after the other, those of one age together."""

    def __init__(
        self, database: Database, projector: Projector, source: Source, settings: Projections, catalogue: Catalogue
    ) -> None:
        self._live = database
        self._cursor = database.cursor()
        self._projector = projector
        self._source = source
        self._most = settings.batch_max
        self._catalogue = catalogue
        self._asked = asyncio.Event()
        self._asked.set()
        self._thread = ThreadPoolExecutor(1, "builder")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background, once the live writer has caught up."""
        self._task = asyncio.create_task(self._run(), name="builder")

    async def stop(self) -> None:
        """End after the transaction that runs; what is made so far is gone on with the next time."""
        await end(lambda: [self._task], CANCEL_AGAIN_S)
        await asyncio.to_thread(self._thread.shutdown)
        self._cursor.close()

    async def ask(self, name: str) -> None:
        """Have a projection made anew; one that is being made already is gone on with.

        Raises:
            ProjectionNotFound: there is none of this name.
        """
        if name not in self._catalogue:
            raise ProjectionNotFound(name=name)
        await self._do(lambda: self._begin(name))
        self._asked.set()

    async def states(self) -> list[VersionState]:
        """Return all versions in the file, by name; what serves comes first."""
        return await self._do(self._states)

    def _begin(self, name: str) -> None:
        with self._cursor.transaction():
            if all(version.serving for version in versions.read(self._cursor) if version.name == name):
                versions.add(self._cursor, self._catalogue[name], serving=False)

    # --- the life -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self._projector.caught_up.wait()
        failures = 0
        while True:
            await self._asked.wait()
            try:
                await self._make_next()
                failures = 0
            except (WriteError, NoServer):
                log.exception("a projection could not be made; it is gone on with")
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1

    async def _make_next(self) -> None:
        """Make what does not serve yet, and is as far as each other; go to rest if there is nothing."""
        self._asked.clear()
        group = await self._do(self._next_group)
        if not group:
            return
        self._asked.set()
        build = self._live.build(group)
        try:
            await self._make(build, group)
        finally:
            await self._do(build.close)

    async def _make(self, build: Build, group: Seq[Version]) -> None:
        names = ", ".join(version.name for version in group)
        log.info("made anew in the background: %s", names)
        for _ in range(ROUNDS_MOST):
            reached = await self._catch_up(build)
            now = await self._do(self._live_checkpoints)
            if sum(now[stream] - sequence for stream, sequence in reached.items()) <= FEW:
                break
        async with self._projector.writing:
            await self._catch_up(build)
            await self._do(lambda: versions.take_over(self._cursor, group))
            here = await self._do(lambda: versions.read(self._cursor))
            kept = {version.home for version in self._live.served} | {version.home for version in group}
            self._live.serve([version for version in versions.served(here) if version.home in kept])
        log.info("made anew, and serving: %s", names)

    async def _catch_up(self, build: Build) -> dict[str, int]:
        """Apply what the live writer has applied by now, and return up to where that is."""
        targets = await self._do(self._live_checkpoints)
        await catch_up(build, self._source, targets, self._most, self._do)
        return {stream: targets[stream] for stream in build.streams}

    # --- on the thread ------------------------------------------------------------------------------------------------

    async def _do(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _next_group(self) -> list[Version]:
        groups: dict[tuple[tuple[str, int], ...], list[Version]] = {}
        for version in versions.read(self._cursor):
            if not version.serving:
                done = self._cursor.rows(sql.blocks(sql.SYSTEM)["build_checkpoints"], {"home": version.home})
                groups.setdefault(tuple(sorted(done)), []).append(version)
        return next(iter(groups.values())) if groups else []

    def _live_checkpoints(self) -> dict[str, int]:
        return {stream: sequence for stream, (sequence, _) in self._cursor.checkpoints().items()}

    def _states(self) -> list[VersionState]:
        found = sorted(versions.read(self._cursor), key=lambda version: (version.name, not version.serving))
        return [self._state(version) for version in found]

    def _state(self, version: Version) -> VersionState:
        params = {"home": version.home}
        own = dict(self._cursor.rows(sql.blocks(sql.SYSTEM)["build_checkpoints"], params))
        done = own if own or not version.serving else self._live_checkpoints()
        return VersionState(
            version.name,
            version.projection.version,
            version.serving,
            version.projection == self._catalogue[version.name],
            dict(self._cursor.rows(sql.blocks(sql.SYSTEM)["rows"], params)),
            {stream: done.get(stream, 0) for stream in version.projection.streams},
        )
