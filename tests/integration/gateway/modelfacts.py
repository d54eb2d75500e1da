"""Facts about nodes and models, written into the log as agents write them."""

from __future__ import annotations

from typing import Any

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import (
    ModelChecked,
    ModelDescribed,
    ModelDropped,
    ModelEvent,
    ModelFetchFailed,
    ModelFetchProgressed,
    ModelFetchStarted,
    ModelStored,
)
from bitinglip.events.node import NodeHeartbeat, NodeStarted

GPT2 = "openai-community/gpt2"
COMMIT = ModelDescribed.example["revision"]
OTHER = "0" * 40
AT = f"{GPT2}@{COMMIT}"
GIB = 2**30


async def node(log: EventLog, node_id: str, *, card_gib: float = 8, disk_gib: float = 100) -> None:
    """Say that a node is up, with one card."""
    devices = [{"device": "cuda:0", "name": "card", "memory_total_bytes": int(card_gib * GIB)}]
    started = NodeStarted.model_validate(NodeStarted.example | {"node_id": node_id, "devices": devices})
    told = {"node_id": node_id, "devices": devices, "disk_free_bytes": int(disk_gib * GIB), "workers": []}
    beat = NodeHeartbeat.model_validate(NodeHeartbeat.example | told)
    for event in (started, beat):
        subject = subjects.node_subject(node_id, event.type.removeprefix("node."))
        await log.append(log.fact_append(event, subject, node_id))


async def tell(log: EventLog, event: ModelEvent) -> int:
    """Put a fact about a model into the log."""
    subject = subjects.model_subject(event.reference, event.type.removeprefix("model."))
    return await log.append(log.fact_append(event, subject, event.reference))


async def describe(log: EventLog, **changes: Any) -> int:
    """Say what a model is, as a gateway does."""
    return await tell(log, ModelDescribed.model_validate(ModelDescribed.example | changes))


async def start_fetch(log: EventLog, node_id: str, **changes: Any) -> int:
    """Say that a node fetches."""
    told = ModelFetchStarted.example | {"node_id": node_id} | changes
    return await tell(log, ModelFetchStarted.model_validate(told))


async def tick(log: EventLog, node_id: str, done_bytes: int, **changes: Any) -> int:
    """Say how far a node has come."""
    told = ModelFetchProgressed.example | {"node_id": node_id, "done_bytes": done_bytes} | changes
    return await tell(log, ModelFetchProgressed.model_validate(told))


async def store(log: EventLog, node_id: str, **changes: Any) -> int:
    """Say that a node has it."""
    return await tell(log, ModelStored.model_validate(ModelStored.example | {"node_id": node_id} | changes))


async def fail(log: EventLog, node_id: str, **changes: Any) -> int:
    """Say that a node could not fetch it."""
    return await tell(log, ModelFetchFailed.model_validate(ModelFetchFailed.example | {"node_id": node_id} | changes))


async def drop(log: EventLog, node_id: str, **changes: Any) -> int:
    """Say that a node has it no more."""
    return await tell(log, ModelDropped.model_validate(ModelDropped.example | {"node_id": node_id} | changes))


def checked(node_id: str) -> ModelChecked:
    """Return the end of a check in which all is well."""
    return ModelChecked.model_validate(ModelChecked.example | {"node_id": node_id, "damaged": []})
