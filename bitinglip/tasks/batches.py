"""Batches: tasks that are asked for together. What is asked, a batch as a fold over its events, and its way to the log.

    opened -> a lot of tasks' submitted and extended, stored together; again and again -> closed -> ... -> completed

Each of a batch's events expects the one before, so what a closed batch says of its number holds: a lot is in the log
before `closed`, or not at all. A request that ends in between leaves a batch that is open; its repeat with the same
idempotency key goes on with it: what was added under the key, `extended` tells.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitinglip.errors import BatchIsClosed, BatchNotFound, Conflict, IdempotencyMismatch, InvalidInput, MalformedBody
from bitinglip.events import subjects
from bitinglip.events.batch import BatchClosed, BatchCompleted, BatchExtended, BatchOpened
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.events.together import append_together
from bitinglip.ids import TaskId, task_id_for_key
from bitinglip.tasks.commands import SubmitTask, invalid_input
from bitinglip.tasks.inbox import Inbox

TASKS_MOST = 10_000
LOT = 250
"""Tasks that are stored together."""
TRIES = 100
"""How often a lot is tried again while other gateways add to the same batch, and are faster."""
FIRST = "first"
"""The part that a batch is made with."""


class CreateBatch(BaseModel):
    """Ask for many tasks with one handle: the body of `POST /v1/batches`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=100, description="The caller's own name for it.")
    metadata: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=32, description="The caller's own labels."
    )
    defaults: dict[str, Any] = Field(
        default_factory=dict, description="Fields of `POST /v1/tasks` that hold for each task that does not give them."
    )
    tasks: list[dict[str, Any]] = Field(
        default_factory=list[dict[str, Any]], max_length=TASKS_MOST, description="Each a body of `POST /v1/tasks`."
    )
    open: bool = Field(default=False, description="Whether more tasks follow; it is closed by a request then.")

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body.

        Raises:
            MalformedBody: it is not JSON in UTF-8.
            InvalidInput: a field is refused; the error names it.
        """
        try:
            return cls.model_validate(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise MalformedBody(problem=str(error)) from error
        except ValidationError as error:
            raise invalid_input(error) from error

    def commands(self) -> list[SubmitTask]:
        """Return what is asked of each task, in their order.

        Raises:
            InvalidInput: a field of one is refused; the error names it, and the task's index.
        """
        return [command_of(self.defaults | task, index) for index, task in enumerate(self.tasks)]

    def sha256(self) -> str:
        """Return the digest of what is asked, by which a repeat is told from another request."""
        canonical = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()


def digest_of(commands: Iterable[SubmitTask]) -> str:
    """Return the digest of what is asked of these tasks, in their order."""
    return hashlib.sha256("".join(command.sha256() for command in commands).encode()).hexdigest()


def command_of(document: Any, index: int) -> SubmitTask:
    """Return what is asked of a task, by its document and its place in the request.

    Raises:
        InvalidInput: a field is refused; the error names it, and the task's index.
    """
    name = f"tasks.{index}"
    try:
        command = SubmitTask.model_validate(document)
    except ValidationError as error:
        raise invalid_input(error, name) from error
    try:
        command.check_params()
    except InvalidInput as error:
        raise InvalidInput(field=f"{name}.{error.field}", problem=error.problem) from error
    return command


class Batch(NamedTuple):
    """A batch as its own events tell it."""

    id: str
    opened: BatchOpened
    sequence: int
    """Sequence of its last event."""
    tasks: int = 0
    closed: BatchClosed | None = None
    completed: BatchCompleted | None = None


class Part(NamedTuple):
    """What one request adds to a batch."""

    name: str
    members: list[TaskSubmitted]
    request_sha256: str
    key: str | None = None
    """The caller's idempotency key."""


def fold_batch(history: Iterable[Recorded]) -> Batch | None:
    """Return the batch that these events tell, in their order; none without its beginning. Pure.

    Of what was added to it, the last one tells all.
    """
    batch: Batch | None = None
    for recorded in sorted(history, key=lambda recorded: recorded.sequence):
        event = recorded.event
        if isinstance(event, BatchOpened) and batch is None:
            batch = Batch(event.batch_id, event, recorded.sequence)
        elif isinstance(event, BatchExtended) and batch is not None:
            batch = batch._replace(sequence=recorded.sequence, tasks=event.tasks)
        elif isinstance(event, BatchClosed) and batch is not None:
            batch = batch._replace(sequence=recorded.sequence, closed=event)
        elif isinstance(event, BatchCompleted) and batch is not None:
            batch = batch._replace(sequence=recorded.sequence, completed=event)
    return batch


def batch_id_for(key_id: str | None, idempotency_key: str) -> str:
    """Return the id of the batch that an idempotency key makes."""
    return task_id_for_key(f"batch\0{key_id or ''}", idempotency_key)


def part_for(batch_id: str, idempotency_key: str) -> str:
    """Return the name of the part of a batch that an idempotency key adds."""
    return task_id_for_key(f"part\0{batch_id}", idempotency_key)


def member_id(batch_id: str, part: str, index: int) -> TaskId:
    """Return the id of a batch's task, by its place in a part."""
    return task_id_for_key(f"member\0{batch_id}", f"{part}\0{index}")


class Batches:
    """Puts batches into the log."""

    def __init__(self, log: EventLog, inbox: Inbox) -> None:
        self._log = log
        self._inbox = inbox
        self._turn = asyncio.Lock()
        """The server stores one lot after the other anyway, and those of one batch would be in each other's way."""
        self._latest: Batch | None = None
        """The batch that the last lot was added to: who is next need not try what it knew before."""

    async def read(self, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            BatchNotFound: there is no such.
            NoServer: the log cannot be asked now.
        """
        history = await self._log.read_latest(TASKS, subjects.batch_states(batch_id))
        extended = await self._log.read_last(TASKS, subjects.batch_parts(batch_id))
        batch = fold_batch([*history, extended] if extended is not None else history)
        if batch is None:
            raise BatchNotFound(batch_id=batch_id)
        return batch

    async def open(self, opened: BatchOpened, key: str | None) -> tuple[Batch, bool]:
        """Begin a batch; returns it, and whether it is a new one.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            NoServer, StreamFull: the log does not take it now.
        """
        try:
            sequence = await self._log.append(self._log.batch_append(opened, 0))
        except Conflict:
            found = await self.read(opened.batch_id)
            if found.opened.request_sha256 != opened.request_sha256:
                raise IdempotencyMismatch(key=key or "", made=f"batch {found.id}") from None
            return found, False
        return Batch(opened.batch_id, opened, sequence), True

    async def extend(self, batch: Batch, part: Part, request_id: str | None) -> tuple[Batch, bool]:
        """Put a part's tasks into the log, as far as they are not there; returns the batch, and whether any was not.

        Raises:
            BatchIsClosed: it takes no more; the error says how many it took.
            IdempotencyMismatch: the key was used for another request.
            NoServer, StreamFull: the log does not take it now. It can be asked for again with the same key.
        """
        found = done = await self._done(batch.id, part)
        while done < len(part.members):
            async with self._turn:
                batch, done = await self._go_on(batch, part, done, request_id)
        return batch, done > found

    async def close(self, batch: Batch) -> tuple[Batch, bool]:
        """Let nothing more be added to a batch; returns it, and whether it was open.

        Raises:
            NoServer, StreamFull: the log does not take it now.
        """
        while batch.closed is None:
            closed = BatchClosed(batch_id=batch.id, tasks=batch.tasks)
            try:
                sequence = await self._log.append(self._log.batch_append(closed, batch.sequence))
            except Conflict:
                batch = await self.read(batch.id)
                continue
            return batch._replace(sequence=sequence, closed=closed), True
        return batch, False

    async def complete(self, batch_id: str, expected: int, tasks: int, counts: dict[str, int]) -> bool:
        """Say that a batch's tasks have all ended; false if somebody else has said so.

        Raises:
            NoServer, StreamFull: the log does not take it now.
        """
        event = BatchCompleted(batch_id=batch_id, tasks=tasks, counts=counts)
        try:
            await self._log.append(self._log.batch_append(event, expected))
        except Conflict:
            return False
        return True

    async def _go_on(self, batch: Batch, part: Part, done: int, request_id: str | None) -> tuple[Batch, int]:
        """Store the next lot of a part's tasks; returns the batch, and how many of the part it has."""
        if self._latest is not None and self._latest.id == batch.id and self._latest.sequence > batch.sequence:
            batch = self._latest
        conflict: Conflict | None = None
        for _ in range(TRIES):
            if batch.closed is not None:
                raise BatchIsClosed(batch_id=batch.id, taken=done)
            try:
                self._latest, done = await self._put(batch, part, done, request_id)
            except Conflict as error:
                conflict = error
            else:
                return self._latest, done
            batch, done = await self.read(batch.id), await self._done(batch.id, part)
            if done == len(part.members):
                return batch, done
        assert conflict is not None
        raise conflict

    async def _put(self, batch: Batch, part: Part, done: int, request_id: str | None) -> tuple[Batch, int]:
        """Store the next lot of a part's tasks, and the event that says so, together."""
        members = part.members[done : done + LOT]
        event = BatchExtended(
            batch_id=batch.id,
            part=part.name,
            added=done + len(members),
            tasks=batch.tasks + len(members),
            request_sha256=part.request_sha256,
        )
        lot = [*await self._inbox.submissions(members, request_id), self._log.batch_append(event, batch.sequence)]
        sequence = await append_together(self._log, lot)
        return batch._replace(sequence=sequence, tasks=event.tasks), event.added

    async def _done(self, batch_id: str, part: Part) -> int:
        """Return how many of a part's tasks are in the log, the first ones."""
        last = await self._log.read_last(TASKS, subjects.batch_parts(batch_id, part.name))
        if last is None or not isinstance(last.event, BatchExtended):
            return 0
        if last.event.request_sha256 != part.request_sha256:
            raise IdempotencyMismatch(key=part.key or "", made=f"batch {batch_id}")
        return last.event.added
