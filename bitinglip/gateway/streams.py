"""Watching a whole stream: from a sequence on, filtered, to its end or for good."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput
from bitinglip.events import subjects
from bitinglip.events.archive import trimmed_to
from bitinglip.events.cold import history
from bitinglip.events.direct import get_last
from bitinglip.events.envelope import RawMessage
from bitinglip.events.log import STREAM_FILTERS
from bitinglip.events.registry import REGISTRY
from bitinglip.events.streams import LEDGER, MODELS, SCHEDULES, TASKS, WORKERS
from bitinglip.gateway import requests, sse
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.ids import TaskId
from bitinglip.tasks.parameters import KINDS

STREAMS = {"tasks": TASKS, "workers": WORKERS, "models": MODELS, "schedules": SCHEDULES, "ledger": LEDGER}
TYPE_PREFIXES = {
    TASKS: ("task.", "batch."),
    WORKERS: ("worker.", "node."),
    MODELS: ("model.",),
    SCHEDULES: ("schedule.",),
    LEDGER: ("ledger.", "query."),
}
QUIET_S = 1.0
"""After so long without an event, one that reads to the end looks whether the end is still there (ticks expire)."""
KINDS_MOST = 50_000
"""Tasks whose kind a stream filtered by kind remembers."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What somebody wants to see of a stream."""

    stream: str
    filters: Seq[str]
    after: int | None
    """Sequence to start after; none: the stream's end."""
    follow: bool
    kind: str | None


async def stream_events(request: Request) -> Response:
    """Answer `GET /v1/events`: a stream from a sequence on, filtered."""
    gateway = gateway_of(request)
    watch = read_watch(request)
    after = await gateway.log.last_sequence(watch.stream) if watch.after is None else watch.after
    until = None if watch.follow else await _end(gateway, watch)
    events = _of_kind(gateway, watch, _tail(gateway, watch, after, until))
    return sse.stream(gateway, sse.until_closed(events, gateway.closing))


def read_watch(request: Request) -> Watch:
    """Read the parameters of `GET /v1/events`.

    Raises:
        InvalidInput: it names the parameter.
    """
    requests.only(request, ("stream", "types", "kind", "task_id", "follow", "after", "from"))
    stream = STREAMS[requests.choice("stream", requests.one(request, "stream"), "tasks", STREAMS)]
    kind = requests.one(request, "kind")
    if kind is not None:
        requests.choice("kind", kind, kind, KINDS)
        if stream not in {TASKS, MODELS}:
            raise InvalidInput(field="kind", problem=f"events of the stream {stream} have no kind")
    after = requests.resume_after(request)
    start = requests.choice("from", requests.one(request, "from"), "end", ("start", "end"))
    return Watch(
        stream=stream,
        filters=_filters(stream, requests.words(request, "types"), requests.one(request, "task_id")),
        after=0 if after is None and start == "start" else after,
        follow=requests.choice("follow", requests.one(request, "follow"), "true", ("true", "false")) == "true",
        kind=kind,
    )


def _filters(stream: str, types: list[str], task_id: str | None) -> Seq[str]:
    if task_id is not None and stream != TASKS:
        raise InvalidInput(field="task_id", problem="only the stream 'tasks' has events about one task")
    about = "*" if task_id is None else requests.checked_task_id(task_id)
    known = [name for name in REGISTRY if name.startswith(TYPE_PREFIXES[stream])]
    filters: list[str] = []
    for name in dict.fromkeys(types):
        requests.choice("types", name, name, known)
        what, _, event = name.partition(".")
        filters += [f"bl.{what}.{about}.{event}", *([f"bl.{what}.{about}.{event}.>"] if stream == TASKS else [])]
    return filters or ([subjects.task_events(TaskId(about))] if task_id else STREAM_FILTERS[stream])


async def _end(gateway: Gateway, watch: Watch) -> int:
    """Return the sequence of the last event that the watch would see; 0 if there is none."""
    last = [await get_last(gateway.log.connection, watch.stream, subject) for subject in watch.filters]
    return max((message.sequence for message in last if message is not None), default=0)


async def _tail(gateway: Gateway, watch: Watch, after: int, until: int | None) -> AsyncGenerator[Seq[RawMessage]]:
    if until is None:
        source = history(gateway.log, watch.stream, after, filters=watch.filters, most=1000)
        async with aclosing(source) as batches:
            async for batch in batches:
                yield batch
        return
    gone, cold = await trimmed_to(gateway.log.connection, watch.stream), gateway.log.connection.cold
    if cold is not None and gone > after:
        async with aclosing(cold.messages(watch.stream, after, gone, watch.filters, 1000)) as archived:
            async for batch in archived:
                yield batch
        after = gone
    if until <= after:
        return
    source = gateway.log.tail(watch.stream, after, filters=watch.filters, most=1000)
    async with (
        aclosing(source) as batches,
        aclosing(up_to(batches, after, until, lambda: _end(gateway, watch))) as bounded,
    ):
        async for batch in bounded:
            yield batch


async def up_to(
    batches: AsyncIterator[Seq[RawMessage]], after: int, until: int, end: Callable[[], Awaitable[int]]
) -> AsyncGenerator[Seq[RawMessage]]:
    """Yield what comes after a sequence up to another one; if that is gone meanwhile, to the last one that is there."""
    following: asyncio.Future[Seq[RawMessage]] = asyncio.ensure_future(anext(batches))
    try:
        while after < until:
            await asyncio.wait((following,), timeout=QUIET_S)
            if not following.done():
                until = min(until, await end())
                continue
            batch = following.result()
            after = batch[-1].sequence
            if wanted := [message for message in batch if message.sequence <= until]:
                yield wanted
            following = asyncio.ensure_future(anext(batches))
    finally:
        await sse.stop(following)


async def _of_kind(
    gateway: Gateway, watch: Watch, batches: AsyncGenerator[Seq[RawMessage]]
) -> AsyncGenerator[Seq[RawMessage]]:
    kinds: OrderedDict[str, str | None] = OrderedDict()
    async with aclosing(batches):
        async for batch in batches:
            if watch.kind is None:
                chosen = batch
            else:
                chosen = [message for message in batch if await _kind(gateway, watch, message, kinds) == watch.kind]
            if chosen:
                yield chosen


async def _kind(gateway: Gateway, watch: Watch, message: RawMessage, kinds: OrderedDict[str, str | None]) -> str | None:
    """Return the kind that an event is about; a task's is said by its first event alone."""
    if watch.stream == MODELS:
        return _said_kind(message)
    task_id = message.subject.split(".", 3)[2]
    if task_id not in kinds:
        kinds[task_id] = await _submitted_kind(gateway, TaskId(task_id), message)
        if len(kinds) > KINDS_MOST:
            kinds.popitem(last=False)
    return kinds[task_id]


async def _submitted_kind(gateway: Gateway, task_id: TaskId, message: RawMessage) -> str | None:
    first: RawMessage | None = message
    if sse.type_of(message) != "task.submitted":
        subject = f"bl.task.{task_id}.submitted"
        first = await get_last(gateway.log.connection, TASKS, f"{subject}.>")
        first = first or await get_last(gateway.log.connection, TASKS, subject)  # of a task that starts later
    return None if first is None else _said_kind(first)


def _said_kind(message: RawMessage) -> str | None:
    """Return the kind that the event itself says; none for one that says none, or cannot be read."""
    try:
        return orjson.loads(message.payload)["data"]["kind"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return None
