"""What trails: versions of projections that are applied some seconds after the others.

However few its events are, a transaction costs what the planning of its statements does. So what is asked seldom, and
costs most, is applied once for all events of some seconds: by then, or when there are many, or when somebody asks. The
events wait in memory; after a crash they are read from the log again, from the checkpoints of what trails.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Seq

from bitinglip.events.envelope import Messages
from bitinglip.projections.catchup import BATCH_MOST_BYTES, Do, catch_up
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database
from bitinglip.projections.source import Source
from bitinglip.projections.writer import write_trailing

EVERY_S = 5.0
"""Longest that an event waits."""
Settle = Callable[[str], Awaitable[None]]
"""Waits until all that is applied is in the tables that a text may name."""


async def nothing_trails(_: str) -> None:
    """Wait for nothing: where all projections are applied at once."""


class Trailing:
    """The events that what trails in one file lacks. `most`: events that may wait."""

    def __init__(self, database: Database, most: int) -> None:
        self.settled = Checkpoints()
        """Up to where nothing is lacking."""
        self._database = database
        self._most = most
        self._waiting: dict[str, list[Messages]] = defaultdict(list)
        self._events, self._bytes = 0, 0
        """Of what waits."""
        self._since = 0.0
        self._is_asked = False

    @property
    def streams(self) -> frozenset[str]:
        """The streams of what trails."""
        return frozenset(stream for build in self._database.trailing for stream in build.streams)

    def add(self, stream: str, batches: Seq[Messages]) -> None:
        """Have events wait that all else is applied to."""
        if stream in self.streams:
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting[stream] += batches
            self._events += sum(map(len, batches))
            self._bytes += sum(batch.size_bytes for batch in batches)
        else:
            self.settled.advance(stream, batches[-1].sequences[-1])

    def ask(self) -> None:
        """Let it be due."""
        self._is_asked = True

    def due_in_s(self) -> float | None:
        """Return in how many seconds what waits is to be applied; none if nothing waits."""
        if not self._waiting:
            self._is_asked = False
            return None
        enough = self._events >= self._most or self._bytes >= BATCH_MOST_BYTES
        return 0.0 if self._is_asked or enough else max(0.0, self._since + EVERY_S - time.monotonic())

    def apply(self) -> None:
        """Apply what waits, on the writer's thread; it waits on until it is said to be done.

        Raises:
            WriteError: the database could not be written; what is applied is not applied again.
        """
        for stream, batches in self._waiting.items():
            write_trailing(self._database, stream, *batches)

    def done(self) -> None:
        """Say that all that waits is applied."""
        waiting, self._waiting, self._is_asked = self._waiting, defaultdict(list), False
        self._events, self._bytes = 0, 0
        for stream, batches in waiting.items():
            self.settled.advance(stream, batches[-1].sequences[-1])

    async def catch_up(self, source: Source, targets: dict[str, int], do: Do) -> None:
        """Apply what was lacking when the file was opened: all else is as far as the targets say.

        Raises:
            NoServer: the log cannot be asked.
            WriteError: the database could not be written.
        """
        for build in self._database.trailing:
            await catch_up(build, source, targets, self._most, do)
        for stream, sequence in targets.items():
            self.settled.advance(stream, sequence)
