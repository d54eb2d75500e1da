"""Watching one task: its history and what comes live, up to its terminal event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import TaskNotFound
from bitinglip.events.absence import confirm_absent
from bitinglip.events.cold import task_messages
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.live import LiveEvents
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway import eventstream, requests, sse, unsealing, waiting
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.ids import TaskId
from bitinglip.tasks.state import TERMINAL_TYPES, is_terminal

BEGUN = frozenset({"task.assigned", *TERMINAL_TYPES})
"""Types after which a task waits for its model no more."""


class Follower:
    """Follows one task for one caller: listens from `open` on, until `close` or the gateway's end."""

    def __init__(self, gateway: Gateway, task_id: TaskId) -> None:
        self._gateway = gateway
        self._task_id = task_id
        self._live = LiveEvents(gateway.log.connection, task_id, gateway.readmodel.feed)
        self._forget: Callable[[], None] | None = None

    @classmethod
    async def open(cls, gateway: Gateway, task_id: TaskId) -> Follower:
        """Begin to listen.

        Raises:
            NoServer: the connection is away.
        """
        follower = cls(gateway, task_id)
        await follower._live.open()
        follower._forget = gateway.closing.on_set(follower._live.end)
        return follower

    async def close(self) -> None:
        """Stop listening."""
        if self._forget is not None:
            self._forget()
        await self._live.close()

    async def batches(self, after: int, *, heard_all: bool = False) -> AsyncGenerator[list[RawMessage]]:
        """Yield the events after a sequence up to the terminal one; `heard_all`: all of them came after `open`."""
        async with aclosing(self._live.batches(after, heard_all=heard_all)) as batches:
            async for batch in batches:
                until, ended = _to_the_end(batch)
                self._gateway.recent.note(self._task_id, until[-1].sequence)
                yield until
                if ended:
                    return

    async def after_history(self, history: list[RawMessage], after: int) -> AsyncGenerator[list[RawMessage]]:
        """Yield the events after a sequence, of which `history`, read since `open`, are the first."""
        until, ended = _to_the_end(history)
        self._gateway.recent.note(self._task_id, until[-1].sequence)  # who has seen an event reads a task that has it
        if wanted := [message for message in until if message.sequence > after]:
            yield wanted
        if ended:
            return
        async with aclosing(self.batches(max(after, history[-1].sequence), heard_all=True)) as batches:
            async for batch in batches:
                yield batch

    async def to_the_end(self, after: int, timeout_s: float, *, heard_all: bool) -> list[RawMessage] | None:
        """Wait for the task's terminal event and return all events up to it; none if it did not come in time."""
        told: list[RawMessage] = []
        try:
            async with asyncio.timeout(timeout_s), aclosing(self.batches(after, heard_all=heard_all)) as batches:
                async for batch in batches:
                    told += batch
                    if ends(batch[-1]):
                        return told
        except TimeoutError:
            pass
        return None


async def task_events(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/events`: the history, then live until the task's end."""
    gateway = gateway_of(request)
    requests.only(request, ("after", "format"))
    task_id = requests.task_id_of(request)
    after = requests.resume_after(request) or 0
    as_json = requests.choice("format", requests.one(request, "format"), _accepted(request), ("sse", "json")) == "json"
    if as_json:
        history = [message for message in await _history(gateway, task_id) if message.sequence > after]
        opener = unsealing.Opener(gateway, task_id)
        return sse.json_list([await opener.opened(message) for message in history])
    follower = await Follower.open(gateway, task_id)
    try:
        history = await _history(gateway, task_id)
        if not any(ends(message) and message.sequence <= after for message in history):
            beside = await _beside(gateway, history)
            batches = unsealing.batches(gateway, task_id, follower.after_history(history, after))
            return sse.stream(gateway, batches, ends=ends, closed=follower.close, beside=beside)
    except BaseException:
        await follower.close()
        raise
    await follower.close()
    return sse.nothing_more()


async def _beside(gateway: Gateway, history: list[RawMessage]) -> AsyncGenerator[bytes] | None:
    """Return the events of the model that a task waits for; none if it has it, or has ended."""
    if any(sse.type_of(message) in BEGUN for message in history):
        return None
    submitted = decode(history[0], TASKS).event
    if not isinstance(submitted, TaskSubmitted):
        return None
    return await waiting.events_of_model(gateway, submitted.model, submitted.kind)


async def _history(gateway: Gateway, task_id: TaskId) -> list[RawMessage]:
    history = await task_messages(gateway.log.connection, task_id)
    if not history:
        await confirm_absent(gateway.log, task_id)
        raise TaskNotFound(task_id=task_id)
    return history


def ends(message: RawMessage) -> bool:
    """Tell whether this event is its task's terminal one."""
    name = sse.type_of(message)
    return name in TERMINAL_TYPES or (name == "task.failed" and is_terminal(decode(message, TASKS).event))


def _to_the_end(batch: list[RawMessage]) -> tuple[list[RawMessage], bool]:
    for index, message in enumerate(batch):
        if ends(message):
            return batch[: index + 1], True
    return batch, False


def _accepted(request: Request) -> str:
    return (
        "json"
        if requests.wants(request, "application/json") and not requests.wants(request, eventstream.MEDIA_TYPE)
        else "sse"
    )
