"""The rows that the named queries answer with: frozen, every time aware, every JSON column decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import orjson

from bitinglip.events.task import Lane
from bitinglip.tasks.state import State

NodeState = Literal["online", "draining", "offline"]
_Row = TypeVar("_Row")
_JSON = frozenset({
    "metadata", "params", "params_ref", "retried_as", "depends_on",
    "result", "result_ref", "failure", "versions", "models", "loaded",
    "labels", "devices", "workers", "counts", "need_bytes", "tags", "parts", "parameters",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task, as its events tell it; the columns of `tasks` (`sql/tasks.sql` says what each means)."""

    task_id: str
    state: State
    kind: str
    model: str
    lane: Lane
    key_id: str | None
    idempotency_key: str | None
    metadata: dict[str, str]
    params: dict[str, Any] | None
    params_ref: dict[str, Any] | None
    request_sha256: str
    retry_of: str | None
    retried_as: list[str]
    batch_id: str | None
    depends_on: list[str] | None
    on_failure: str | None
    max_attempts: int
    run_at: datetime | None
    expires_at: datetime | None
    timeout_ms: int | None
    vram_gb: float
    labels: list[str]
    attempt: int
    worker_id: str | None
    node_id: str | None
    device: str | None
    revision: str | None
    submitted_at: datetime
    queued_at: datetime | None
    queued_reason: str | None
    started_at: datetime | None
    finished_at: datetime | None
    wait_ms: int | None
    run_ms: float | None
    load_ms: float | None
    result: dict[str, Any] | None
    result_ref: dict[str, Any] | None
    failure: dict[str, Any] | None
    failures: int
    retry_at: datetime | None
    input_tokens: int | None
    output_tokens: int | None
    versions: dict[str, str] | None
    cancel_requested: bool
    progress_step: int | None
    progress_total: int | None
    progress_unit: str | None
    private: bool
    forgotten_at: datetime | None
    submitted_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch of tasks; the columns of `batches`, and what has become of its tasks."""

    batch_id: str
    name: str | None
    state: Literal["open", "closed", "completed"]
    metadata: dict[str, str]
    key_id: str | None
    tasks: int
    done: int
    counts: dict[str, int]
    opened_at: datetime
    closed_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    opened_sequence: int
    last_sequence: int


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker; the columns of `workers`."""

    worker_id: str
    node_id: str | None
    state: str
    pid: int | None
    device: str | None
    release: str | None
    models: list[dict[str, Any]] | None
    running: int
    done: int
    failed: int
    loaded: list[str]
    rss_bytes: int | None
    device_name: str | None
    device_memory_total_bytes: int | None
    device_memory_used_bytes: int | None
    device_utilisation_percent: float | None
    device_temperature_c: float | None
    device_power_w: float | None
    engine_exits: int
    engine_exit_reason: str | None
    stop_reason: str | None
    drained: bool
    started_at: datetime | None
    seen_at: datetime
    stopped_at: datetime | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A node; the columns of `nodes`."""

    node_id: str
    state: NodeState
    pid: int | None
    release: str | None
    system: str | None
    labels: dict[str, str]
    draining: bool
    cpus: int | None
    cpu_percent: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    disk_total_bytes: int | None
    disk_free_bytes: int | None
    rss_bytes: int | None
    devices: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    worker_exits: int
    worker_exit_reason: str | None
    started_at: datetime | None
    seen_at: datetime
    stopped_at: datetime | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model that was described, or that a worker can run; the columns of `models`."""

    reference: str
    kind: str | None
    revision: str | None
    architecture: str | None
    size_bytes: int | None
    context_tokens: int | None
    registered_at: datetime | None
    described_at: datetime | None
    source: str | None
    asked_revision: str | None
    parameters: int | None
    dtype: str | None
    fetch_bytes: int | None
    need_bytes: dict[str, int] | None
    licence: str | None
    tags: list[str] | None
    gated: bool | None
    parts: dict[str, str] | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class ModelNodeRow:
    """A revision of a model on a node; the columns of `model_nodes`."""

    reference: str
    revision: str
    node_id: str
    status: str
    pinned: bool
    asked: bool
    done_bytes: int
    total_bytes: int
    bytes_per_s: float | None
    left_s: float | None
    stored_bytes: int
    code: str | None
    problem: str | None
    remedy: str | None
    retry_at: datetime | None
    check_asked: Literal["check", "repair"] | None
    checked_at: datetime | None
    changed_at: datetime
    last_sequence: int


@dataclass(frozen=True, slots=True)
class ModelAliasRow:
    """A name that stands for a revision of a model; the columns of `model_aliases`."""

    alias: str
    model: str
    revision: str
    set_at: datetime
    set_by: str | None
    previous_model: str | None
    previous_revision: str | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class SavedQueryRow:
    """SQL that has a name; the columns of `saved_queries`."""

    name: str
    sql: str
    description: str | None
    parameters: dict[str, dict[str, Any]]
    saved_at: datetime
    saved_by: str | None
    last_sequence: int


@dataclass(frozen=True, slots=True)
class ModelUsageRow:
    """What tasks made of a revision of a model."""

    model: str
    """Its name, without a revision."""
    revision: str | None
    runs: int
    """Tasks that ran on it, ended or not."""
    run_s: float
    """Seconds that they took on the device."""
    last_used_at: datetime | None


@dataclass(frozen=True, slots=True)
class ColumnSchema:
    """A column that a query can read."""

    name: str
    type: str
    comment: str | None


@dataclass(frozen=True, slots=True)
class TableSchema:
    """A table that a query can read."""

    name: str
    comment: str | None
    columns: tuple[ColumnSchema, ...]


@dataclass(frozen=True, slots=True)
class AuditRow:
    """An event that a request led to; the columns of `audit`."""

    recorded_at: datetime
    stream: str
    sequence: int
    type: str
    about: str
    key_id: str | None
    address: str | None
    request_id: str


def reader(row: Callable[..., _Row]) -> Callable[[tuple[Any, ...]], _Row]:
    """Return what makes a row of this class from a tuple of DuckDB's."""
    names = [field.name for field in fields(row)]  # pyright: ignore[reportArgumentType]

    def read(values: tuple[Any, ...]) -> _Row:
        return row(*[_value(name, value) for name, value in zip(names, values, strict=True)])

    return read


def _value(name: str, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC)
    # `parameters` is a number of a model, and JSON of a saved query.
    return orjson.loads(value) if name in _JSON and isinstance(value, str) else value
