"""One task's row from its own events, in Python: what `sql/tasks.sql` makes of them, without a database.

For whoever holds all of a task's events already, and need not wait until the read model has them as well. A test holds
both to the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import orjson

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.registry import REGISTRY
from bitinglip.projections.batch import newest
from bitinglip.projections.rows import TaskRow
from bitinglip.tasks.state import TERMINAL_TYPES, State

ENDED = 2**31 - 1
"""The greatest state key, of a task that has ended; `tasks.sql` says what the others are."""
WAITS, READY, RUNS, FAILED = range(4)
"""Phases of an attempt, as a state key has them."""

ASKED = (
    "task_id", "kind", "model", "lane", "key_id", "idempotency_key", "params", "params_ref", "request_sha256",
    "retry_of", "batch_id", "on_failure", "timeout_ms",
)  # fmt: skip
"""Columns that are as `task.submitted` has them."""
ASSIGNED = ("worker_id", "node_id", "device", "revision", "wait_ms")
"""Columns that are as the last `task.assigned` has them."""

_Data = Mapping[str, Any]
NOTHING: _Data = {}


def row_of(history: Iterable[RawMessage]) -> TaskRow | None:
    """Return the row of the task whose events these are, in their order; none without its `task.submitted`.

    `retried_as`, which other tasks' events tell, is empty.
    """
    fold: _Fold | None = None
    for message in newest(Messages.of(history), REGISTRY):
        document = cast("dict[str, Any]", orjson.loads(message.payload))
        kind, data, at = document["type"], document["data"], datetime.fromisoformat(document["time"])
        if kind == "task.submitted" and fold is None:
            fold = _Fold(data, message.sequence, at)
        if fold is not None:
            fold.take(kind, data, message.sequence, at)
    return None if fold is None else fold.row()


def state_key(kind: str, data: _Data) -> int | None:
    """Return how far an event brings its task; none if it does not."""
    if kind == "task.submitted":
        return 4 + (WAITS if data.get("run_at") or data.get("depends_on") is not None else READY)
    if kind == "task.failed" and data.get("retry_at") is not None:
        return data["attempt"] * 4 + FAILED
    if kind in TERMINAL_TYPES or kind == "task.failed":
        return ENDED
    phase = {"task.queued": READY, "task.assigned": RUNS}.get(kind)
    return None if phase is None else data["attempt"] * 4 + phase


class _Fold:
    """A task's row on its way."""

    def __init__(self, submitted: _Data, sequence: int, at: datetime) -> None:
        self._submitted = submitted
        self._submitted_sequence = self._last_sequence = sequence
        self._submitted_at = at
        self._key = 0
        self._ended: tuple[str, _Data, datetime] | None = None
        self._queued: tuple[datetime, str | None] | None = None
        self._assigned: tuple[_Data, datetime] | None = None
        self._progress = NOTHING
        self._failed = NOTHING
        self._retry_at: str | None = None
        self._run_ms: float | None = None
        self._failures = 0
        self._cancel_requested = False
        self._forgotten_at: datetime | None = None
        self._vram_gb = float(_inner(submitted, "requires").get("vram_gb") or 0)

    def take(self, kind: str, data: _Data, sequence: int, at: datetime) -> None:
        """Take in the next event."""
        self._last_sequence = sequence
        key = state_key(kind, data)
        if key is not None and key > self._key:
            self._advance(key, kind, data, at)
        if kind == "task.assigned":
            self._assigned, self._progress = (data, at), NOTHING
        elif kind == "task.progressed" and data["attempt"] >= self._attempt:
            self._progress = data
        elif kind in {"task.failed", "task.dead_lettered"}:
            self._fail(kind, data)
        elif kind == "task.cancel_requested":
            self._cancel_requested = True
        elif kind == "task.forgotten":
            self._forgotten_at = self._forgotten_at or at

    def _advance(self, key: int, kind: str, data: _Data, at: datetime) -> None:
        self._key = key
        self._retry_at = data["retry_at"] if key != ENDED and key % 4 == FAILED else None
        if key != ENDED and key % 4 == READY:
            self._queued = (at, data.get("reason"))
        elif key == ENDED:
            self._ended = (kind, data, at)
            self._ran(data)

    def _fail(self, kind: str, data: _Data) -> None:
        self._failed = data
        self._ran(data)
        self._vram_gb = max(self._vram_gb, float(data.get("next_vram_gb") or 0))
        self._failures += kind == "task.dead_lettered" or data["failure"]["kind"] != "worker_stopped"

    def _ran(self, data: _Data) -> None:
        if data.get("run_ms") is not None:
            self._run_ms = float(data["run_ms"])

    @property
    def _attempt(self) -> int:
        return self._assigned[0]["attempt"] if self._assigned is not None else 0

    @property
    def _state(self) -> State:
        if self._ended is not None:
            return cast("State", self._ended[0].removeprefix("task."))
        phases: dict[int, State] = {READY: "queued", RUNS: "running"}
        return phases.get(self._key % 4, "scheduled")

    def row(self) -> TaskRow:
        """Return the row."""
        return TaskRow(
            **self._request(),
            **self._attempted(),
            **self._outcome(),
            submitted_sequence=self._submitted_sequence,
            last_sequence=self._last_sequence,
        )

    def _request(self) -> dict[str, Any]:
        asked = self._submitted
        requires, depends_on = _inner(asked, "requires"), asked.get("depends_on")
        return {name: asked.get(name) for name in ASKED} | {
            "metadata": asked.get("metadata") or {},
            "retried_as": [],
            "depends_on": depends_on if isinstance(depends_on, list) else None,
            "max_attempts": _inner(asked, "retry").get("max_attempts") or 3,
            "run_at": _moment(asked.get("run_at")),
            "expires_at": _moment(asked.get("expires_at")),
            "vram_gb": self._vram_gb,
            "labels": list(requires.get("labels") or ()),
            "submitted_at": _utc(self._submitted_at),
            "private": bool(asked.get("private")),
            "forgotten_at": _utc(self._forgotten_at),
        }

    def _attempted(self) -> dict[str, Any]:
        assigned, started_at = self._assigned or (NOTHING, None)
        queued_at, queued_reason = self._queued or (None, None)
        return {name: assigned.get(name) for name in ASSIGNED} | {
            "attempt": self._attempt,
            "queued_at": _utc(queued_at),
            "queued_reason": queued_reason,
            "started_at": _utc(started_at),
            "retry_at": _moment(self._retry_at),
            "progress_step": self._progress.get("step"),
            "progress_total": self._progress.get("total"),
            "progress_unit": self._progress.get("unit"),
        }

    def _outcome(self) -> dict[str, Any]:
        kind, ended, finished_at = self._ended or ("", NOTHING, None)
        succeeded = kind == "task.succeeded"
        usage = _inner(ended, "usage")
        return {name: ended.get(name) for name in ("result", "result_ref", "versions")} | {
            "state": self._state,
            "finished_at": _utc(finished_at),
            "run_ms": self._run_ms,
            "load_ms": float(ended.get("load_ms") or 0) if succeeded else None,
            "failure": self._failed.get("failure"),
            "failures": self._failures,
            "input_tokens": usage.get("input_tokens", 0) if succeeded else None,
            "output_tokens": usage.get("output_tokens", 0) if succeeded else None,
            "cancel_requested": self._cancel_requested,
        }


def _inner(data: _Data, name: str) -> _Data:
    return cast("_Data", data.get(name) or NOTHING)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else _utc(datetime.fromisoformat(text))


def _utc(at: Any) -> Any:
    return None if at is None else at.astimezone(UTC)
