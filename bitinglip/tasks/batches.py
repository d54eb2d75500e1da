"""Batches: tasks that are asked for together. What is asked, a batch as a fold over its events, and its way to the log.

    opened -> each task's submitted, with the batch's id -> closed -> ... -> completed

A request that ends in between leaves a batch that is open; its repeat with the same idempotency key goes on with it:
the ids of the batch and of its tasks come of the key, so nothing is there twice.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bitinglip.errors import Conflict, IdempotencyMismatch, InvalidInput, MalformedBody
from bitinglip.events import subjects
from bitinglip.events.batch import BatchClosed, BatchCompleted, BatchOpened
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId, task_id_for_key
from bitinglip.tasks.commands import SubmitTask, invalid_input
from bitinglip.tasks.inbox import Inbox

TASKS_MOST = 10_000
AT_ONCE = 256
"""Tasks of a batch that are on their way into the log at the same time."""


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
    tasks: list[dict[str, Any]] = Field(max_length=TASKS_MOST, description="Each a body of `POST /v1/tasks`.")

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
        return [_command(self.defaults | task, f"tasks.{index}") for index, task in enumerate(self.tasks)]

    def sha256(self) -> str:
        """Return the digest of what is asked, by which a repeat is told from another request."""
        canonical = orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)
        return hashlib.sha256(canonical).hexdigest()


def _command(document: dict[str, Any], name: str) -> SubmitTask:
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
    closed: BatchClosed | None = None
    completed: BatchCompleted | None = None


def fold_batch(history: Iterable[Recorded]) -> Batch | None:
    """Return the batch that these events tell, in their order; none without its beginning. Pure."""
    batch: Batch | None = None
    for recorded in sorted(history, key=lambda recorded: recorded.sequence):
        event = recorded.event
        if isinstance(event, BatchOpened) and batch is None:
            batch = Batch(event.batch_id, event, recorded.sequence)
        elif isinstance(event, BatchClosed) and batch is not None:
            batch = batch._replace(sequence=recorded.sequence, closed=event)
        elif isinstance(event, BatchCompleted) and batch is not None:
            batch = batch._replace(sequence=recorded.sequence, completed=event)
    return batch


def batch_id_for(key_id: str | None, idempotency_key: str) -> str:
    """Return the id of the batch that an idempotency key makes."""
    return task_id_for_key(f"batch\0{key_id or ''}", idempotency_key)


def member_id(batch_id: str, index: int) -> TaskId:
    """Return the id of a batch's task, by its place."""
    return task_id_for_key(f"member\0{batch_id}", str(index))


class Batches:
    """Puts batches into the log."""

    def __init__(self, log: EventLog, inbox: Inbox) -> None:
        self._log = log
        self._inbox = inbox

    async def read(self, batch_id: str) -> Batch | None:
        """Return a batch; none if there is no such.

        Raises:
            NoServer: the log cannot be asked now.
        """
        return fold_batch(await self._log.read_latest(TASKS, subjects.batch_events(batch_id)))

    async def create(
        self, opened: BatchOpened, members: list[TaskSubmitted], key: str | None, request_id: str | None
    ) -> tuple[int, bool]:
        """Put a batch and all of its tasks into the log; returns the last sequence, and whether it is a new one.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            NoServer, StreamFull: the log does not take it now. It can be asked for again with the same key.
        """
        batch, created = await self._open(opened, key)
        if batch.closed is not None:
            return batch.sequence, created
        slots = asyncio.Semaphore(AT_ONCE)
        ways = [self._submit(event, request_id, slots) for event in members]
        for outcome in await asyncio.gather(*ways, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        closed = BatchClosed(batch_id=batch.id, tasks=len(members))
        try:
            return await self._log.append(self._log.batch_append(closed, batch.sequence)), created
        except Conflict:  # the same request came twice at once, and the other one was faster
            last = await self.read(batch.id)
            assert last is not None
            return last.sequence, created

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

    async def _open(self, opened: BatchOpened, key: str | None) -> tuple[Batch, bool]:
        try:
            sequence = await self._log.append(self._log.batch_append(opened, 0))
        except Conflict:
            found = await self.read(opened.batch_id)
            if found is None:
                raise
            if found.opened.request_sha256 != opened.request_sha256:
                raise IdempotencyMismatch(key=key or "", task_id=found.id) from None
            return found, False
        return Batch(opened.batch_id, opened, sequence), True

    async def _submit(self, event: TaskSubmitted, request_id: str | None, slots: asyncio.Semaphore) -> None:
        async with slots:
            await self._inbox.append(event, request_id)
