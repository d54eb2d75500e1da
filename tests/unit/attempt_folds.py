"""What the projection of attempts and its parts are to say, folded event by event in plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from bitinglip.events.envelope import RawMessage, Recorded, decode
from bitinglip.events.task import (
    TaskAssigned,
    TaskCancelled,
    TaskDeadLettered,
    TaskFailed,
    TaskSucceeded,
)
from bitinglip.tasks.state import Task, evolve

Row = tuple[Any, ...]
NEVER = datetime(9999, 12, 31)  # noqa: DTZ001  (the tables' times are UTC, and do not say so)
PHASES = ("wait", "load", "run")
USED = ("input_tokens", "output_tokens", "images", "audio_in_ms", "audio_out_ms")


@dataclass
class Folded:
    """The rows so far."""

    attempts: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict[tuple[str, int], dict[str, Any]])
    flows: Counter[tuple[str, str, datetime, str]] = field(default_factory=Counter[tuple[str, str, datetime, str]])
    usage: defaultdict[Row, Counter[str]] = field(default_factory=lambda: defaultdict[Row, Counter[str]](Counter))
    energy: dict[Row, int] = field(default_factory=dict[Row, int])
    latency: defaultdict[Row, list[int]] = field(default_factory=lambda: defaultdict[Row, list[int]](lambda: [0, 0]))
    errors: dict[Row, dict[str, Any]] = field(default_factory=dict[Row, dict[str, Any]])

    def rows(self) -> dict[str, list[Row]]:
        """Return the rows by table, sorted, each without what nobody folds."""
        return {
            "attempts": sorted((*key, *row.values()) for key, row in self.attempts.items()),
            "queues": self._queues(),
            "usage": sorted(
                (key, tuple(sorted((+counts).items())), self.energy.get(key)) for key, counts in self.usage.items()
            ),
            "latency": sorted((*key, *told) for key, told in self.latency.items()),
            "errors": sorted((*key, *row.values()) for key, row in self.errors.items()),
        }

    def _queues(self) -> list[Row]:
        rows: list[Row] = []
        totals: Counter[tuple[str, str, str]] = Counter()
        for lane, model, at in sorted({key[:3] for key in self.flows}):
            for flow in ("arrivals", "departures", "starts", "ends"):
                totals[lane, model, flow] += self.flows[lane, model, at, flow]
            depth = totals[lane, model, "arrivals"] - totals[lane, model, "departures"]
            running = totals[lane, model, "starts"] - totals[lane, model, "ends"]
            rows.append((lane, model, at, depth, running))
        return rows


def fold_attempts(messages: Iterable[RawMessage]) -> Folded:
    """Fold a log."""
    tasks: dict[str, Task] = {}
    folded = Folded()
    for message in messages:
        recorded = decode(message, "TASKS")
        task_id = message.subject.split(".")[2]
        before = tasks.get(task_id)
        after = evolve(before, recorded.event, recorded.sequence, recorded.time)
        if after is not None:
            tasks[task_id] = after
            _step(folded, before, after, recorded)
    return folded


def _step(folded: Folded, before: Task | None, after: Task, recorded: Recorded) -> None:
    was, now = before.state if before else None, after.state
    asked = after.submitted
    bucket = _naive(recorded.recorded_at) - timedelta(
        seconds=recorded.recorded_at.second % 10, microseconds=recorded.recorded_at.microsecond
    )
    for flow, happened in (
        ("arrivals", now == "queued" != was),
        ("departures", was == "queued" != now),
        ("starts", now == "running" != was),
        ("ends", was == "running" != now),
    ):
        if happened:
            folded.flows[asked.lane, asked.model, bucket, flow] += 1
    if isinstance(recorded.event, TaskAssigned):
        _begin(folded, after, recorded, recorded.event)
    if before is not None and was == "running" != now:
        _end(folded, after, before.attempt, recorded)
    if after.ended and not (before and before.ended):
        _count(folded, after, recorded, {after.state: 1})


def _begin(folded: Folded, task: Task, recorded: Recorded, event: TaskAssigned) -> None:
    folded.attempts[task.id, event.attempt] = {
        "kind": task.submitted.kind,
        "model": task.submitted.model,
        "lane": task.submitted.lane,
        "key_id": task.submitted.key_id or "",
        "worker_id": event.worker_id,
        "revision": event.revision or "",
        "assigned_at": _naive(recorded.time),
        "ended_at": NEVER,
        "outcome": "running",
        "ended_task": False,
        "failure_message": "",
        "wait_ms": event.wait_ms,
        "run_ms": -1.0,
        "images": -1,
        "energy_j": -1.0,
        "last_sequence": recorded.sequence,
    }


def _end(folded: Folded, task: Task, attempt: int, recorded: Recorded) -> None:
    row, event = folded.attempts[task.id, attempt], recorded.event
    row |= {"ended_at": _naive(recorded.time), "ended_task": task.ended, "last_sequence": recorded.sequence}
    match event:
        case TaskSucceeded():
            row |= {"outcome": "succeeded", "run_ms": event.run_ms, "images": event.usage.images}
            row |= {"energy_j": -1.0 if event.usage.energy_j is None else event.usage.energy_j}
            used = {name: getattr(event.usage, name) for name in USED}
            _count(folded, task, recorded, {"attempts": 1, "run_us": _micro(event.run_ms)} | used, event.usage.energy_j)
            for phase, ms in zip(PHASES, (row["wait_ms"], event.load_ms, event.run_ms), strict=True):
                _time(folded, task, recorded, phase, _micro(ms))
        case TaskFailed() | TaskDeadLettered():
            row |= {"outcome": "failed", "run_ms": event.run_ms, "failure_message": event.failure.message}
            _count(folded, task, recorded, {"attempts": 1, "run_us": _micro(event.run_ms)})
            _fail(folded, task, recorded, event)
        case _:
            assert isinstance(event, TaskCancelled)
            row |= {"outcome": "cancelled"}
            _count(folded, task, recorded, {"attempts": 1})


def _count(
    folded: Folded, task: Task, recorded: Recorded, counts: dict[str, int], energy_j: float | None = None
) -> None:
    asked = task.submitted
    key = (_hour(recorded), asked.key_id or "", asked.model, asked.kind)
    folded.usage[key].update(counts)
    if energy_j is not None:
        folded.energy[key] = folded.energy.get(key, 0) + round(energy_j * 1000)


def _time(folded: Folded, task: Task, recorded: Recorded, phase: str, us: int) -> None:
    asked = task.submitted
    bucket = 0 if us <= 1 else math.ceil(4 * math.log2(us))
    told = folded.latency[_hour(recorded), asked.model, asked.kind, asked.lane, phase, bucket]
    told[0] += 1
    told[1] += us


def _fail(folded: Folded, task: Task, recorded: Recorded, event: TaskFailed | TaskDeadLettered) -> None:
    key = (_hour(recorded), event.failure.kind, task.submitted.model, event.worker_id, "rig")
    row = folded.errors.setdefault(key, {"failures": 0, "retried": 0, "final": 0})
    row["failures"] += 1
    row["final" if task.ended else "retried"] += 1
    row |= {"last_at": _naive(recorded.time), "last_message": event.failure.message, "last_task_id": task.id}


def _micro(ms: float) -> int:
    return round(ms * 1000)


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def _hour(recorded: Recorded) -> datetime:
    return _naive(recorded.time).replace(minute=0, second=0, microsecond=0)
