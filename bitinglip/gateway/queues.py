"""The queues: how long their work waits; pausing and resuming those of a model, and cancelling what waits in them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import MalformedBody, NoServer, QueueNotFound
from bitinglip.events import subjects
from bitinglip.events.consumers import QueueState
from bitinglip.events.model import QueueEvent, QueuePaused, QueueResumed
from bitinglip.events.pauses import lanes_of, paused_lanes, settle_pauses
from bitinglip.events.streams import Route, ensure_consumer, has_consumer
from bitinglip.events.task import Lane
from bitinglip.gateway import bulk, past, pastviews, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.estimates import RATE_S, wait_s
from bitinglip.gateway.responses import json
from bitinglip.projections.query import TaskFilter
from bitinglip.tasks.commands import invalid_input

AT_ONCE = 32
"""Queues that are looked into at the same time."""
Rates = dict[tuple[str, str], float]
_B = TypeVar("_B", bound="QueueChange")


class QueueChange(BaseModel):
    """Which queues: the body of `POST /v1/queues:pause` and `POST /v1/queues:resume`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=200, description="Model reference.")
    lane: Lane | None = Field(default=None, description="Lane; all of them unless given.")
    reason: Annotated[str, Field(max_length=512)] | None = Field(default=None, description="Why; kept in the log.")

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body.

        Raises:
            MalformedBody: it is not JSON.
            InvalidInput: a field is refused; the error names it.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                raise MalformedBody(problem=error.errors()[0]["msg"]) from error
            raise invalid_input(error) from error


class QueuePurge(QueueChange):
    """What is to be cancelled: the body of `POST /v1/queues:purge`."""

    dry_run: bool = Field(default=False, description="Only say which tasks are meant.")
    limit: int = Field(default=1000, ge=1, le=bulk.PAGE_MOST, description="Most tasks that this request is about.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the request before.")


async def queues(request: Request) -> Response:
    """Answer `GET /v1/queues`; a queue is there once a worker has served it, or a task was put into it."""
    requests.only(request, (past.AS_OF,))
    then = await past.listed(request, "queues", pastviews.queues)
    return json(then or {"queues": await queues_now(gateway_of(request))})


async def queues_now(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the queues as they are.

    Raises:
        NoServer: the log cannot be asked.
    """
    if not gateway.log.connected:
        raise NoServer(problem="the connection is away")
    states = await gateway.log.queue_states()
    since = gateway.log.clock() - timedelta(seconds=RATE_S)
    rates = {key: count / RATE_S for key, count in (await gateway.readmodel.queries.ended_since(since)).items()}
    waiting: Counter[tuple[str, str]] = Counter()
    for state in states:
        waiting[state.route.lane, state.model] += state.waiting
    slots = asyncio.Semaphore(AT_ONCE)
    oldest = await asyncio.gather(*[_oldest_s(gateway, state, slots) for state in states])
    return [_queue(*each, waiting, rates) for each in zip(states, oldest, strict=True)]


async def pause(request: Request) -> Response:
    """Answer `POST /v1/queues:pause`."""
    return await _change(request, QueuePaused)


async def resume(request: Request) -> Response:
    """Answer `POST /v1/queues:resume`."""
    return await _change(request, QueueResumed)


async def purge(request: Request) -> Response:
    """Answer `POST /v1/queues:purge`: each task that waits is cancelled, so that none goes without a last event."""
    gateway = gateway_of(request)
    asked = await _asked(request, QueuePurge)
    chosen = TaskFilter(
        states=("queued", "scheduled"), model=asked.model, lane=asked.lane, limit=asked.limit, cursor=asked.cursor
    )
    return json(await bulk.cancel_page(gateway, chosen, asked.reason, dry_run=asked.dry_run))


async def _asked(request: Request, body: type[_B]) -> _B:
    requests.only(request)
    return body.from_json(await requests.read_json(request, gateway_of(request).settings.gateway.max_body_bytes))


async def _change(request: Request, fact: type[QueueEvent]) -> Response:
    gateway = gateway_of(request)
    change = await _asked(request, QueueChange)
    await _check(gateway, change.model)
    await _tell(gateway, change, fact)
    if fact is QueuePaused:
        await _make_common(gateway, change)
    paused = await settle_pauses(gateway.log.connection, change.model)
    return json({"model": change.model, "paused_lanes": sorted(paused)})


async def _check(gateway: Gateway, model: str) -> None:
    """Refuse a model that nothing is known of.

    Raises:
        QueueNotFound: no worker has registered it, and it has no queue.
        NoServer: the log cannot be asked.
    """
    if await gateway.catalogue.knows(model):
        return
    if not any(state.model == model for state in await gateway.log.queue_states()):
        raise QueueNotFound(model=model)


async def _tell(gateway: Gateway, change: QueueChange, fact: type[QueueEvent]) -> None:
    """Put the change into the log, unless it is so already: a request that is sent again is no other fact."""
    paused, meant = await paused_lanes(gateway.log.connection, change.model), lanes_of(change.lane)
    if meant <= paused if fact is QueuePaused else not meant & paused:
        return
    event = fact(model=change.model, lane=change.lane, by=gateway.key_id, reason=change.reason)
    subject = subjects.model_subject(change.model, fact.type.replace(".", "_"))
    await gateway.log.append(gateway.log.fact_append(event, subject, change.model))


async def _make_common(gateway: Gateway, change: QueueChange) -> None:
    """Make the queues that workers would make when they start, so that those are paused as well.

    One that is there keeps the lease that its workers gave it.
    """
    connection = gateway.log.connection
    for lane in sorted(lanes_of(change.lane)):
        route = Route(lane, subjects.encode_queue(change.model))
        if not await has_consumer(connection.js, route):
            await ensure_consumer(connection.js, route, gateway.settings.worker.lease_s)


async def _oldest_s(gateway: Gateway, state: QueueState, slots: asyncio.Semaphore) -> float | None:
    async with slots:
        return await gateway.log.oldest_waiting_s(state)


def _queue(
    state: QueueState, oldest_s: float | None, waiting: Counter[tuple[str, str]], rates: Rates
) -> dict[str, Any]:
    model, work = subjects.decode_queue(state.route.queue)
    requires = {"vram_gb": work.vram_gb, "label": work.labels} if work.vram_gb or work.labels else None
    rate = rates.get((state.route.lane, model), 0.0)
    return {
        "lane": state.route.lane,
        "model": model,
        "key": work.share or None,
        "requires": requires,
        "depth": state.waiting + state.running,
        "waiting": state.waiting,
        "running": state.running,
        "oldest_s": None if oldest_s is None else round(oldest_s, 3),
        "rate_per_s": round(rate, 3),
        "estimated_wait_s": wait_s(waiting[state.route.lane, model], rate, paused=state.paused),
        "paused": state.paused,
    }
