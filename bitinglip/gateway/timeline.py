"""A task's life as a timeline; and that of the cluster, for whoever draws it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import TaskNotFound
from bitinglip.events.envelope import Recorded
from bitinglip.events.model import HoldingEvent, ModelFetchFailed, ModelFetchStarted, ModelFetchStopped, ModelStored
from bitinglip.events.streams import MODELS, TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway import past, requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.pastviews import told
from bitinglip.gateway.responses import json
from bitinglip.projections.moment import Moment
from bitinglip.projections.past import Past
from bitinglip.tasks.timeline import Life, life_of, sampled

ENDS = (ModelStored, ModelFetchFailed, ModelFetchStopped)


@dataclass(frozen=True, slots=True)
class Fetch:
    """A node that fetched the task's model while the task waited."""

    node_id: str
    revision: str
    start: datetime
    end: datetime | None
    """None: it went on when the task began, or goes on."""
    outcome: str | None
    bytes: int


async def task_timeline(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/timeline`."""
    requests.only(request, (past.AS_OF,))
    gateway, task_id = gateway_of(request), requests.task_id_of(request)
    moment = await past.moment_of(request)
    if moment is None:
        await gateway.task(task_id)
        applied = {stream: gateway.readmodel.applied(stream) for stream in (TASKS, MODELS)}
        moment = Moment(gateway.log.clock(), applied)
    history, about_model = await past.at(request, moment, lambda state: _histories(state, task_id))
    life = life_of(history, moment.at)
    if life is None:
        raise TaskNotFound(task_id=task_id)
    return json(shown(life, fetches(life, about_model)) | {past.AS_OF: told(moment)})


def shown(life: Life, fetched: list[Fetch]) -> dict[str, Any]:
    """Return a task's life as it is answered."""
    last, end = life.last, life.end
    ended_at = last.end if end is not None else None
    return {
        "task_id": life.submitted.task_id,
        "kind": life.submitted.kind,
        "model": life.submitted.model,
        "lane": life.submitted.lane,
        "state": end.state if end is not None else _state(last.kind),
        "submitted_at": life.submitted_at,
        "ended_at": ended_at,
        "ms": round(sum(span.ms for span in life.spans), 3),
        "spans": life.spans,
        "ticks": {"count": len(life.ticks), "sample": sampled(life.ticks)},
        "fetches": fetched,
        "cancel_requested_at": life.cancel_requested_at,
        "end": None if end is None else {
            "state": end.state, "at": end.at, "attempt": end.attempt, "by": end.by, "reason": end.reason,
            "failure": end.failure and end.failure.model_dump(),
        },
    }  # fmt: skip


def fetches(life: Life, history: list[Recorded]) -> list[Fetch]:
    """Return what nodes fetched of the task's model between its submission and its first attempt."""
    begun = next((span.start for span in life.spans if span.worker_id is not None), None)
    until = begun or (life.last.end if life.end is not None else None)
    open_: dict[tuple[str, str], Fetch] = {}
    found: list[Fetch] = []
    for recorded in history:
        event, at = recorded.event, recorded.time
        if until is not None and at > until:
            break
        if isinstance(event, ModelFetchStarted):
            open_[event.node_id, event.revision] = Fetch(
                event.node_id, event.revision, at, None, None, event.missing_bytes
            )
        elif isinstance(event, ENDS) and (fetch := open_.pop((event.node_id, event.revision), None)) is not None:
            found.append(_ended(fetch, event, at))
    return [fetch for fetch in [*found, *open_.values()] if fetch.end is None or fetch.end > life.submitted_at]


def _ended(fetch: Fetch, event: HoldingEvent, at: datetime) -> Fetch:
    outcome = event.type.removeprefix("model.").removeprefix("fetch_")
    return Fetch(fetch.node_id, fetch.revision, fetch.start, at, outcome, fetch.bytes)


def _histories(state: Past, task_id: str) -> tuple[list[Recorded], list[Recorded]]:
    history = state.history(TASKS, task_id)
    first = history[0].event if history else None
    model = first.model.partition("@")[0] if isinstance(first, TaskSubmitted) else None
    return history, state.history(MODELS, model) if model is not None else []


def _state(kind: str) -> str:
    return {"waiting": "queued", "running": "running", "loading": "running"}.get(kind, "scheduled")
