"""The projections of workers and models."""

from __future__ import annotations

from typing import Any

import pytest

from bitinglip.events.envelope import RawMessage
from bitinglip.events.model import ModelRegistered
from bitinglip.events.registry import Event
from bitinglip.events.worker import (
    WorkerDeviceLost,
    WorkerEngineExited,
    WorkerHeartbeat,
    WorkerModelsChanged,
    WorkerStarted,
    WorkerStopped,
)
from bitinglip.projections import queries
from bitinglip.projections.rows import ModelRow, WorkerRow, reader
from bitinglip.projections.writer import write
from tests.unit.projection_support import fresh_database, message

HISTORY = [
    (WorkerStarted, {}),
    (WorkerHeartbeat, {"done": 1}),
    (WorkerEngineExited, {}),
    (WorkerEngineExited, {"reason": "again"}),
    (WorkerModelsChanged, {}),
    (WorkerHeartbeat, {"done": 2, "device": None}),
    (WorkerStopped, {}),
    (WorkerStarted, {"pid": 99}),
    (WorkerEngineExited, {"reason": "third"}),
    (WorkerHeartbeat, {"done": 0}),
]
DEVICE = {"name": "AMD 0x67df", "memory_total_bytes": 8 * 2**30, "temperature_c": 54.0}


def _messages(history: list[tuple[type[Event], dict[str, Any]]], about: str) -> list[RawMessage]:
    return [
        message(cls.model_validate(cls.example | changes), number, about=about)
        for number, (cls, changes) in enumerate(history, 1)
    ]


def _workers(history: list[tuple[type[Event], dict[str, Any]]], size: int) -> list[WorkerRow]:
    messages = _messages(history, "rig-1-0")
    with fresh_database() as database:
        for start in range(0, len(messages), size):
            write(database, "WORKERS", messages[start : start + size])
        return [reader(WorkerRow)(row) for row in database.rows(queries.text("workers"))]


@pytest.mark.parametrize("end", range(1, len(HISTORY) + 1))
def test_workers_do_not_depend_on_the_cutting(end: int) -> None:
    whole = _workers(HISTORY[:end], 100)
    assert _workers(HISTORY[:end], 1) == whole
    assert _workers(HISTORY[:end], 2) == whole


def test_a_start_begins_anew() -> None:
    [row] = _workers(HISTORY, 3)
    assert (row.state, row.pid, row.done, row.engine_exits, row.engine_exit_reason) == ("started", 99, 0, 1, "third")
    assert (row.stopped_at, row.stop_reason) == (None, None)
    assert row.models == [{"kind": "echo", "reference": "echo", "revision": None}]
    assert row.loaded == ["openai-community/gpt2"]


def test_a_stop_is_told() -> None:
    [row] = _workers(HISTORY[:7], 2)
    assert (row.state, row.stop_reason, row.stopped_at, row.engine_exits) == ("stopped", "signal", row.seen_at, 2)


@pytest.mark.parametrize("size", [1, 100])
def test_models_that_came_are_those_of_the_worker(size: int) -> None:
    [row] = _workers(HISTORY[:6], size)
    assert [model["reference"] for model in row.models or ()] == ["echo", "openai-community/gpt2"]


def test_a_heartbeat_tells_of_the_device() -> None:
    [row] = _workers(HISTORY[:2], 1)
    assert (row.device, row.device_name) == ("cuda:0", "NVIDIA GeForce RTX 3070")
    assert (row.device_memory_total_bytes, row.device_memory_used_bytes) == (8_589_934_592, 3_221_225_472)
    assert (row.device_utilisation_percent, row.device_temperature_c, row.device_power_w) == (87.0, 64.0, 181.5)


@pytest.mark.parametrize("size", [1, 2, 10])
def test_what_the_last_heartbeat_does_not_tell_of_the_device_is_null(size: int) -> None:
    history = [*HISTORY[:2], (WorkerHeartbeat, {"device": DEVICE}), (WorkerEngineExited, {})]
    [row] = _workers(history, size)
    assert (row.device_name, row.device_memory_total_bytes, row.device_temperature_c) == ("AMD 0x67df", 8 * 2**30, 54)
    assert (row.device_memory_used_bytes, row.device_utilisation_percent, row.device_power_w) == (None, None, None)
    [row] = _workers(HISTORY[:6], size)
    assert (row.done, row.device_name, row.device_power_w) == (2, None, None)


@pytest.mark.parametrize("size", [1, 5])
def test_a_lost_device_is_a_sign_of_life_and_then_a_stop(size: int) -> None:
    history = [*HISTORY[:2], (WorkerDeviceLost, {"device": "cuda:1"}), (WorkerStopped, {"reason": "error"})]
    [row] = _workers(history, size)
    assert (row.state, row.stop_reason, row.device, row.engine_exit_reason) == ("stopped", "error", "cuda:0", None)


def test_models_are_told_once_for_each_kind_and_revision() -> None:
    history: list[tuple[type[Event], dict[str, Any]]] = [
        (ModelRegistered, {}),
        (ModelRegistered, {"revision": None, "size_bytes": 1}),
        (ModelRegistered, {"revision": None, "size_bytes": 2}),
        (ModelRegistered, {"kind": "embedding"}),
    ]
    with fresh_database() as database:
        for one in _messages(history, "openai-community/gpt2"):
            write(database, "MODELS", [one])
        rows = [reader(ModelRow)(row) for row in database.rows(queries.text("models"))]
    assert [(row.kind, row.revision, row.size_bytes) for row in rows] == [
        ("embedding", ModelRegistered.example["revision"], 548_105_171),
        ("text-generation", ModelRegistered.example["revision"], 548_105_171),
        ("text-generation", None, 2),
    ]
