"""A task's life as spans of time, a fold over its events: pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from bitinglip.events.envelope import Recorded
from bitinglip.events.task import (
    Failure,
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskDeadLettered,
    TaskExpired,
    TaskFailed,
    TaskProgressed,
    TaskQueued,
    TaskSubmitted,
    TaskSucceeded,
)

Kind = Literal["scheduled", "dependent", "waiting", "loading", "running", "pause"]
"""What a task does in a span.

`scheduled`: it waits for its time; `dependent`: for other tasks; `waiting`: ready, for a worker; `loading`: its worker
loads the model; `running`: an attempt runs, or, where nothing tells the two apart, loads its model and runs; `pause`:
it waits for the time of the next attempt.
"""
TICKS_MOST = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a task's life."""

    kind: Kind
    attempt: int
    """Number of the attempt that it belongs to, or leads to."""
    start: datetime
    end: datetime | None = None
    """None while it goes on."""
    ms: float = 0.0
    """How long it took, or has taken so far, in milliseconds."""
    reason: str | None = None
    """What it began with: as `queued_reason` of a task."""
    due_at: datetime | None = None
    """When what it waits for was to come: the time of a task's start, or of its next attempt."""
    outcome: str | None = None
    """How an attempt ended: `succeeded`, `cancelled`, or the kind of its failure."""
    problem: str | None = None
    worker_id: str | None = None
    node_id: str | None = None
    device: str | None = None
    revision: str | None = None
    batch_size: int | None = None
    """Tasks that it runs with together."""
    run_ms: float | None = None
    """Milliseconds on the device, as the worker says."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A sign of progress."""

    at: datetime
    attempt: int
    step: int
    total: int | None
    unit: str


@dataclass(frozen=True, slots=True)
class End:
    """How a task ended."""

    state: str
    at: datetime
    attempt: int | None = None
    failure: Failure | None = None
    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Life:
    """What the events so far tell of a task."""

    submitted: TaskSubmitted
    submitted_at: datetime
    spans: tuple[Span, ...]
    """One after the other; the last one is open until the task ends."""
    ticks: tuple[Tick, ...] = ()
    cancel_requested_at: datetime | None = None
    end: End | None = None

    @property
    def last(self) -> Span:
        """The span that goes on, or went on to the end."""
        return self.spans[-1]


def life_of(history: Iterable[Recorded], now: datetime) -> Life | None:
    """Return the life that these events tell, in their order; none without its first event.

    `now`: up to when a span that goes on is counted.
    """
    life: Life | None = None
    for recorded in history:
        life = _begin(recorded) if life is None else _evolve(life, recorded)
    if life is None or life.end is not None:
        return life
    return replace(life, spans=(*life.spans[:-1], replace(life.last, ms=_ms(life.last.start, now))))


def sampled(ticks: Seq[Tick], most: int = TICKS_MOST) -> list[Tick]:
    """Return at most so many of the ticks, evenly taken, the first and the last among them."""
    if len(ticks) <= most:
        return list(ticks)
    return [ticks[round(at * (len(ticks) - 1) / (most - 1))] for at in range(most)]


def _begin(recorded: Recorded) -> Life | None:
    event, at = recorded.event, recorded.time
    if not isinstance(event, TaskSubmitted):
        return None
    kind: Kind = "dependent" if event.depends_on else "scheduled" if event.run_at is not None else "waiting"
    return Life(event, at, (Span(kind=kind, attempt=1, start=at, due_at=event.run_at),))


def _evolve(life: Life, recorded: Recorded) -> Life:
    event, at = recorded.event, recorded.time
    if life.end is not None:
        return life
    match event:
        case TaskQueued() if life.last.kind not in {"waiting", "running"}:
            return _next(life, at, Span(kind="waiting", attempt=event.attempt, start=at, reason=event.reason))
        case TaskAssigned():
            return _next(life, at, _running(event, at), outcome="lost_lease")
        case TaskProgressed():
            tick = Tick(at, event.attempt, event.step, event.total, event.unit)
            return replace(life, ticks=(*life.ticks, tick))
        case TaskFailed(retry_at=datetime()):
            failed = _closed(life, at, event.failure.kind, event.failure, event.run_ms)
            pause = Span(kind="pause", attempt=event.attempt + 1, start=failed.last.end or at, due_at=event.retry_at)
            return replace(failed, spans=(*failed.spans, pause))
        case TaskSucceeded():
            ended = _closed(life, at, "succeeded", None, event.run_ms)
            ended = replace(ended, spans=(*ended.spans[:-1], *_parts(ended.last, event)))
            return replace(ended, end=End("succeeded", at, event.attempt))
        case TaskFailed() | TaskDeadLettered():
            state = "failed" if isinstance(event, TaskFailed) else "dead_lettered"
            ended = _closed(life, at, event.failure.kind, event.failure, event.run_ms)
            return replace(ended, end=End(state, at, event.attempt, event.failure))
        case TaskCancelRequested():
            return replace(life, cancel_requested_at=at)
        case TaskCancelled():
            ended = _closed(life, at, "cancelled")
            return replace(ended, end=End("cancelled", at, event.attempt, by=event.by, reason=event.reason))
        case TaskExpired():
            return replace(_closed(life, at, "expired"), end=End("expired", at))
        case _:
            return life


def _running(event: TaskAssigned, at: datetime) -> Span:
    return Span(
        kind="running",
        attempt=event.attempt,
        start=at,
        worker_id=event.worker_id,
        node_id=event.node_id,
        device=event.device,
        revision=event.revision,
        batch_size=event.batch_size,
    )


def _next(life: Life, at: datetime, span: Span, outcome: str | None = None) -> Life:
    """End the span that goes on, and begin another; `outcome`: what became of an attempt that says nothing itself."""
    closed = _closed(life, at, outcome if life.last.kind == "running" else None)
    return replace(closed, spans=(*closed.spans, replace(span, start=max(at, life.last.start))))


def _closed(
    life: Life, at: datetime, outcome: str | None, failure: Failure | None = None, run_ms: float | None = None
) -> Life:
    last = life.last
    end = max(at, last.start)  # their writers' clocks may differ
    running = last.kind == "running"
    closed = replace(last, end=end, ms=_ms(last.start, end))
    if running:
        kind: Kind = "loading" if outcome == "load_failed" else "running"
        problem = failure.message if failure is not None else None
        closed = replace(closed, kind=kind, outcome=outcome, problem=problem, run_ms=run_ms)
    return replace(life, spans=(*life.spans[:-1], closed))


def _parts(span: Span, event: TaskSucceeded) -> tuple[Span, ...]:
    """Part an attempt that succeeded into its wait for the model, and the rest."""
    span = replace(span, device=event.device or span.device)
    if span.kind != "running" or span.end is None or event.load_ms <= 0:
        return (span,)
    loaded = min(span.start + timedelta(milliseconds=event.load_ms), span.end)
    load = replace(span, kind="loading", end=loaded, ms=_ms(span.start, loaded), outcome=None, run_ms=None)
    return load, replace(span, start=loaded, ms=_ms(loaded, span.end))


def _ms(start: datetime, end: datetime) -> float:
    return round((end - start) / timedelta(milliseconds=1), 3)
