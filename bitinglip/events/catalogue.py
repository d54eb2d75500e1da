"""All event types, each with its stream, its subjects and its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from bitinglip.errors import UnknownEventType
from bitinglip.events import batch, ledger, model, node, query, schedule, task, worker
from bitinglip.events.registry import REGISTRY, Event
from bitinglip.events.streams import LEDGER, MODELS, SCHEDULES, TASKS, WORKERS

MODULES: Mapping[ModuleType, str] = {
    task: TASKS,
    batch: TASKS,
    worker: WORKERS,
    node: WORKERS,
    model: MODELS,
    schedule: SCHEDULES,
    ledger: LEDGER,
    query: LEDGER,
}
"""Where types are declared, and the stream that their events are in."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ABOUT = {
    "task": "task_id",
    "batch": "batch_id",
    "worker": "worker_id",
    "node": "node_id",
    "model": "model",
    "queue": "model",
    "schedule": "schedule_id",
    "ledger": "about",
    "query": "name",
}
"""What the third token of a subject is, by the first word of the type."""
READY = frozenset({"task.submitted", "task.queued"})
"""Types whose events, when they make a task ready to run, say in their subject where its work waits."""
_STREAMS = {module.__name__: stream for module, stream in MODULES.items()}


def types() -> list[type[Event]]:
    """Return all event types, those of a stream together."""
    return [cls for module in MODULES for cls in REGISTRY.values() if cls.__module__ == module.__name__]


def type_named(name: str) -> type[Event]:
    """Return an event type.

    Raises:
        UnknownEventType: there is none of this name.
    """
    types_by_name = {cls.type: cls for cls in types()}
    if name not in types_by_name:
        raise UnknownEventType(name=name[:200])
    return types_by_name[name]


def stream_of(cls: type[Event]) -> str:
    """Return the stream that a type's events are in."""
    return _STREAMS[cls.__module__]


def subjects_of(cls: type[Event]) -> list[str]:
    """Return the subjects of a type's events, `{name}` for what differs."""
    what, _, event = cls.type.partition(".")
    if what == "queue":
        return [f"bl.model.{{model}}.queue_{event}"]
    plain = f"bl.{what}.{{{ABOUT[what]}}}.{event}"
    if cls.type == "batch.extended":
        return [f"{plain}.{{part}}"]
    return [plain, f"{plain}.{{lane}}.{{queue}}"] if cls.type in READY else [plain]


def schema_of(cls: type[Event]) -> dict[str, Any]:
    """Return the JSON Schema of the `data` of a type's events; fields that it does not name are allowed."""
    return {"$schema": DIALECT, "$id": cls.schema_urn(), **cls.model_json_schema()}
