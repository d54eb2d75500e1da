"""The archive as one gateway reads it: copies of its files on the disk, checked, and what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Sequence as Seq
from contextlib import suppress
from pathlib import Path

from bitinglip.events import archive
from bitinglip.events.archive import trimmed_to
from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.ledger import LedgerArchived
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.subjects import matches
from bitinglip.ids import TaskId, Ulids
from bitinglip.projections.archivefile import messages_of, task_messages_of

Locate = Callable[[TaskId], Awaitable[tuple[int, int] | None]]
"""Returns the sequences of a task's first and last event; none if it is not known."""
SCRATCH = ".part-"
"""How files begin that are not whole yet."""


class Archive:
    """The archive of one log, with copies in a folder."""

    def __init__(self, log: EventLog, folder: Path) -> None:
        self.folder = folder
        self.locate: Locate | None = None
        """How a task is found; until it is set, none is."""
        self._log = log
        self._fetching = asyncio.Lock()

    async def path_of(self, file: LedgerArchived) -> Path:
        """Return the path of the copy of a file, fetched and checked if it is not there.

        Raises:
            ArchiveDamaged: the file is not what the index says.
            NoServer: the server does not answer.
            OSError: the folder cannot be written.
        """
        path = self.folder / file.file
        async with self._fetching:
            if not _is_whole(path, file):
                await self.fetch(file)
        return path

    async def fetch(self, file: LedgerArchived) -> None:
        """Bring a file here from the server, and check it, whether or not it is here; raises as `path_of`."""
        path, scratch = self.folder / file.file, self.scratch()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            await archive.fetch(self._log.connection, file, scratch)
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)

    def scratch(self) -> Path:
        """Return the path of a new file that is not whole yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{SCRATCH}{Ulids()()}"

    def sweep(self) -> None:
        """Remove what a process that died has left unfinished. Nothing else may use the folder now."""
        for left in self.folder.glob(f"{SCRATCH}*"):
            with suppress(FileNotFoundError):
                left.unlink()

    async def index(self, stream: str) -> list[LedgerArchived]:
        """Return the files of a stream, the oldest first.

        Raises:
            NoServer: the server does not answer.
        """
        return await archive.index(self._log.connection, stream)

    async def messages(
        self, stream: str, after: int, up_to: int, filters: Seq[str], most: int
    ) -> AsyncGenerator[Messages, None]:
        """Yield a stream's archived messages after a sequence, up to another one, in order; raises as `path_of`.

        A batch has at most `most` messages, and `filters` (none: all) says which subjects are wanted.
        """
        for file in await self.index(stream):
            if file.last_sequence > after and file.first_sequence <= up_to:
                groups = messages_of(await self.path_of(file), after, up_to)
                while (group := await asyncio.to_thread(next, groups, None)) is not None:
                    for batch in _batches(_chosen(group, filters), most):
                        yield batch

    async def task(self, task_id: TaskId) -> list[RawMessage]:
        """Return the archived events of a task, in order; none if the read model does not know it.

        Raises:
            ProjectionBehind: the read model has not come so far.
            ArchiveDamaged, NoServer, OSError: as for `path_of`.
        """
        bounds = await self._found(task_id)
        if bounds is None:
            return []
        first, last = bounds
        files = [
            each for each in await self.index(TASKS) if each.last_sequence >= first and each.first_sequence <= last
        ]
        found: list[RawMessage] = []
        for file in files:
            found += await asyncio.to_thread(task_messages_of, await self.path_of(file), task_id)
        return found

    async def knows(self, task_id: TaskId) -> bool:
        """Tell whether there is such a task, if it may have left the server.

        Raises:
            ProjectionBehind: the read model has not come so far.
            NoServer: the server does not answer.
        """
        return await self._found(task_id) is not None

    async def _found(self, task_id: TaskId) -> tuple[int, int] | None:
        if self.locate is None or not await trimmed_to(self._log.connection, TASKS):
            return None
        return await self.locate(task_id)


def _is_whole(path: Path, file: LedgerArchived) -> bool:
    """Tell whether the copy is there: it was checked before it was put in its place."""
    return path.is_file() and path.stat().st_size == file.size_bytes


def _chosen(messages: Messages, filters: Seq[str]) -> Messages:
    if not filters:
        return messages
    return Messages.of(message for message in messages if any(matches(each, message.subject) for each in filters))


def _batches(messages: Messages, most: int) -> list[Messages]:
    if len(messages) <= most:
        return [messages] if len(messages) else []
    return [messages[start : start + most] for start in range(0, len(messages), most)]
