"""Many tasks at once: cancel or retry all that a filter finds, a page at a time, and dead letters to look at.

A page is bounded, and says what became of each of its tasks; `next_cursor` says that there are more. What a page does
can be done again: a task that is cancelled stays so, and the retry of one is one task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Self

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import Denied, InvalidInput, MalformedBody, Rejected
from bitinglip.events.reading import end_of
from bitinglip.events.streams import TASKS
from bitinglip.events.task import FailureKind, Lane
from bitinglip.gateway import requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.ids import TaskId
from bitinglip.projections.query import TaskFilter
from bitinglip.tasks.commands import CancelTask, ForgetTask, invalid_input
from bitinglip.tasks.inbox import RETRIED
from bitinglip.tasks.state import TERMINAL, State

PAGE_MOST = 10_000
AT_ONCE = 32
"""Tasks of a page that are changed at the same time."""
UNENDED: frozenset[State] = frozenset({"scheduled", "queued", "running"})


class Selection(BaseModel):
    """Which tasks, and what is only asked: the body of `POST /v1/tasks:cancel` and `POST /v1/tasks:retry`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: State | list[State] | None = Field(default=None, description="State, or states, that they are in.")
    kind: str | None = Field(default=None, max_length=100, description="Kind of task.")
    model: str | None = Field(default=None, max_length=200, description="Model reference.")
    lane: Lane | None = Field(default=None, description="Lane.")
    batch: Annotated[str, Field(max_length=26)] | None = Field(default=None, description="Batch that they are in.")
    key: Annotated[str, Field(max_length=100)] | None = Field(default=None, description="API key that asked for them.")
    failure: FailureKind | None = Field(default=None, description="Kind of the latest failure.")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=32, description="Labels that they all have.")
    after: AwareDatetime | None = Field(
        default=None, description="Ended after this time; submitted after it, if it has not ended."
    )
    before: AwareDatetime | None = Field(default=None, description="Likewise, before this time.")
    dry_run: bool = Field(default=False, description="Only say which tasks are meant.")
    reason: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Why; kept with the tasks.")
    limit: int = Field(default=1000, ge=1, le=PAGE_MOST, description="Most tasks that this request is about.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the request before.")

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body.

        Raises:
            MalformedBody: it is not JSON in UTF-8.
            InvalidInput: a field is refused, or there is no condition at all.
        """
        try:
            made = cls.model_validate(orjson.loads(body))
        except orjson.JSONDecodeError as error:
            raise MalformedBody(problem=str(error)) from error
        except ValidationError as error:
            raise invalid_input(error) from error
        if not made.model_fields_set - {"dry_run", "reason", "limit", "cursor"}:
            raise InvalidInput(field="body", problem="has no condition; name one, as state")
        return made

    def filter(self, allowed: frozenset[State], default: tuple[State, ...]) -> TaskFilter:
        """Return the question to the read model.

        Raises:
            InvalidInput: one of the states is not among those that are allowed.
        """
        given = (self.state,) if isinstance(self.state, str) else tuple(self.state or default)
        if not set(given) <= allowed:
            raise InvalidInput(field="state", problem=f"must be of {', '.join(sorted(allowed))}")
        return TaskFilter(
            states=given,
            kind=self.kind,
            model=self.model,
            lane=self.lane,
            batch_id=self.batch,
            key_id=self.key,
            failure=self.failure,
            metadata=self.metadata,
            after=self.after,
            before=self.before,
            limit=self.limit,
            cursor=self.cursor,
        )


@dataclass(slots=True)
class Page:
    """What became of the tasks of one request."""

    dry_run: bool
    next_cursor: str | None
    task_ids: list[str]
    counts: dict[str, int] = field(default_factory=dict[str, int])
    refused: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    """Tasks that stay as they are, each with the reason."""

    def count(self, what: str) -> None:
        """Count what was done to one task."""
        self.counts[what] = self.counts.get(what, 0) + 1


async def cancel(request: Request) -> Response:
    """Answer `POST /v1/tasks:cancel`."""
    gateway, selection = await _asked(request)
    chosen = selection.filter(UNENDED, ("scheduled", "queued", "running"))
    return json(await cancel_page(gateway, chosen, selection.reason, dry_run=selection.dry_run))


async def cancel_page(gateway: Gateway, chosen: TaskFilter, reason: str | None, *, dry_run: bool) -> dict[str, Any]:
    """Cancel a page of what a filter finds, one by one; returns what became of them.

    Raises:
        NoServer, ProjectionBehind: not all of it was done; it can be done again.
    """
    command = CancelTask(by=gateway.key_id, reason=reason)

    async def end(task_id: TaskId) -> str:
        task = await gateway.inbox.cancel(task_id, command)
        gateway.recent.note_task(task_id, task.sequence, task.submitted.batch_id)
        return "cancelled" if task.ended else "cancel_requested"

    return await _page(gateway, chosen, dry_run, end)


async def retry(request: Request) -> Response:
    """Answer `POST /v1/tasks:retry`."""
    gateway, selection = await _asked(request)
    cause = request.scope["request_id"]

    async def again(task_id: TaskId) -> str:
        accepted = await gateway.inbox.retry(task_id, request_id=cause)
        for each in (task_id, accepted.task_id):  # the old one tells of the new one
            gateway.recent.note(each, accepted.sequence)
        return "retried" if accepted.created else "already_retried"

    return json(await _page(gateway, selection.filter(RETRIED, ("dead_lettered",)), selection.dry_run, again))


async def forget(request: Request) -> Response:
    """Answer `POST /v1/tasks:forget`: of what is found, the private tasks that have ended and are not forgotten."""
    gateway, selection = await _asked(request)
    command = ForgetTask(by=gateway.key_id)

    async def end(task_id: TaskId) -> str:
        task = await gateway.inbox.forget(task_id, command)
        gateway.recent.note_task(task_id, task.sequence, task.submitted.batch_id)
        return "forgotten"

    chosen = replace(selection.filter(TERMINAL, tuple(sorted(TERMINAL))), readable=True)
    return json(await _page(gateway, chosen, selection.dry_run, end))


async def _asked(request: Request) -> tuple[Gateway, Selection]:
    gateway = gateway_of(request)
    requests.only(request)
    body = await requests.read_json(request, gateway.settings.gateway.max_body_bytes)
    return gateway, Selection.from_json(body)


async def _page(
    gateway: Gateway, chosen: TaskFilter, dry_run: bool, act: Callable[[TaskId], Awaitable[str]]
) -> dict[str, Any]:
    if chosen.cursor is None:
        await _caught_up(gateway)
    task_ids, next_cursor = await gateway.readmodel.queries.task_ids(chosen)
    page = Page(dry_run, next_cursor, task_ids)
    if not dry_run:
        slots = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*[_one(page, TaskId(task_id), act, slots) for task_id in task_ids])
    return {
        "matched": len(task_ids),
        **page.counts,
        "refused": page.refused,
        "task_ids": task_ids,
        "dry_run": dry_run,
        "next_cursor": next_cursor,
    }


async def _one(page: Page, task_id: TaskId, act: Callable[[TaskId], Awaitable[str]], slots: asyncio.Semaphore) -> None:
    async with slots:
        try:
            page.count(await act(task_id))
        except (Rejected, Denied) as error:
            page.refused.append({"task_id": task_id, "problem": str(error)})


async def _caught_up(gateway: Gateway) -> None:
    """Wait until the read model knows all that is in the log by now."""
    await gateway.readmodel.wait(TASKS, await end_of(gateway.log, TASKS))
