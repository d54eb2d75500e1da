"""Watching one task: its history and what comes live, up to its terminal event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import TaskNotFound
from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.live import LiveEvents
from bitinglip.events.streams import TASKS
from bitinglip.gateway import requests, sse
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.ids import TaskId
from bitinglip.tasks.state import TERMINAL_TYPES, is_terminal


async def task_events(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/events`: the history, then live until the task's end."""
    gateway = gateway_of(request)
    requests.only(request, ("after", "format"))
    task_id = requests.task_id_of(request)
    after = requests.resume_after(request) or 0
    as_json = requests.choice("format", requests.one(request, "format"), _accepted(request), ("sse", "json")) == "json"
    history = await get_after(gateway.log.connection, TASKS, subjects.task_events(task_id), 0)
    if not history:
        raise TaskNotFound(task_id=task_id)
    if as_json:
        return sse.json_list(message for message in history if message.sequence > after)
    if any(ends(message) and message.sequence <= after for message in history):
        return sse.nothing_more()
    return sse.stream(gateway, after_history(gateway, task_id, history, after))


async def after_history(
    gateway: Gateway, task_id: TaskId, history: list[RawMessage], after: int
) -> AsyncGenerator[list[RawMessage]]:
    """Yield a task's events after a sequence, of which `history` are the first, up to its terminal one."""
    until, ended = _to_the_end(history)
    gateway.recent.note(task_id, until[-1].sequence)  # who has seen an event reads a task that has it
    if wanted := [message for message in until if message.sequence > after]:
        yield wanted
    if not ended:
        async with aclosing(follow(gateway, task_id, max(after, history[-1].sequence))) as batches:
            async for batch in batches:
                yield batch


async def follow(gateway: Gateway, task_id: TaskId, after: int) -> AsyncGenerator[list[RawMessage]]:
    """Yield a task's events after a sequence, stored and live, up to its terminal one."""
    async with aclosing(LiveEvents(gateway.log.connection, task_id).batches(after)) as batches:
        async for batch in batches:
            until, ended = _to_the_end(batch)
            gateway.recent.note(task_id, until[-1].sequence)
            yield until
            if ended:
                return


async def terminal(gateway: Gateway, task_id: TaskId, after: int, timeout_s: float) -> int | None:
    """Wait for a task's terminal event and return its sequence; none if it did not come in time."""
    try:
        async with asyncio.timeout(timeout_s), aclosing(_until_closed(gateway, task_id, after)) as batches:
            async for batch in batches:
                if ends(batch[-1]):
                    return batch[-1].sequence
    except TimeoutError:
        pass
    return None


def ends(message: RawMessage) -> bool:
    """Tell whether this event is its task's terminal one."""
    name = sse.type_of(message)
    return name in TERMINAL_TYPES or (name == "task.failed" and is_terminal(decode(message, TASKS).event))


def _until_closed(gateway: Gateway, task_id: TaskId, after: int) -> AsyncGenerator[list[RawMessage]]:
    return sse.until_closed(follow(gateway, task_id, after), gateway.closing)


def _to_the_end(batch: list[RawMessage]) -> tuple[list[RawMessage], bool]:
    for index, message in enumerate(batch):
        if ends(message):
            return batch[: index + 1], True
    return batch, False


def _accepted(request: Request) -> str:
    return (
        "json" if requests.wants(request, "application/json") and not requests.wants(request, sse.MEDIA_TYPE) else "sse"
    )
