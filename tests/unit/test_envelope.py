"""The envelope: every event type there and back, old versions brought up to date, unknown things kept."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from bitinglip.errors import CorruptEvent
from bitinglip.events import batch, ledger, model, node, query, schedule, task, worker
from bitinglip.events.envelope import RawMessage, UnknownEvent, decode, encode
from bitinglip.events.registry import REGISTRY, Event, event, upcast

NOW = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=UTC)
MODULES = (batch, task, worker, node, model, schedule, ledger, query)


def raw(payload: bytes) -> RawMessage:
    return RawMessage(7, int(NOW.timestamp()) * 1_000_000_000, "bl.task.x.y", payload)


def there_and_back(fact: Event) -> Any:
    payload = encode(fact, id="id", source="/s", time=NOW, about="a", causation="c")
    return decode(raw(payload), "TASKS")


def test_the_catalogue_has_every_declared_event() -> None:
    declared = {
        value.type
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Event) and "example" in vars(value)
    }
    assert declared == set(REGISTRY)
    assert len(declared) >= 15


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_event_comes_back_as_it_was(name: str) -> None:
    fact = REGISTRY[name].model_validate(REGISTRY[name].example)
    recorded = there_and_back(fact)
    assert recorded.event == fact
    assert (recorded.type, recorded.time, recorded.causation) == (name, NOW, "c")


def test_the_envelope_is_a_cloud_event() -> None:
    fact = task.TaskQueued.model_validate(task.TaskQueued.example)
    document = orjson.loads(encode(fact, id="i", source="/s", time=NOW, about="t"))
    assert document == {
        "specversion": "1.0",
        "id": "i",
        "source": "/s",
        "type": "task.queued",
        "subject": "t",
        "time": "2026-01-01T12:30:15.123456Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:bitinglip:task.queued:1",
        "correlationid": "t",
        "data": {**task.TaskQueued.example, "params": None, "params_ref": None},
    }


def test_fields_of_a_newer_writer_are_kept() -> None:
    fact = task.TaskQueued.model_validate(task.TaskQueued.example | {"colour": "red"})
    assert there_and_back(fact).event.model_extra == {"colour": "red"}


def test_a_type_of_a_newer_writer_is_kept_whole() -> None:
    document = orjson.loads(
        encode(task.TaskQueued.model_validate(task.TaskQueued.example), id="i", source="/s", time=NOW, about="t")
    )
    document |= {"type": "task.teleported", "dataschema": "urn:bitinglip:task.teleported:3"}
    recorded = decode(raw(orjson.dumps(document)), "TASKS")
    assert isinstance(recorded.event, UnknownEvent)
    assert recorded.type == "task.teleported"
    assert recorded.event.model_extra == document["data"]


NUMBERED = b'{"id":"1","type":"task.queued","source":"/s","time":"2026-12-01T00:00:00Z","dataschema":1,"data":{}}'


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"{}", b"\xff", b'{"type":"task.queued"}', b'{"id":1,"type":"x","data":3}', NUMBERED],
)
def test_bytes_that_are_no_event_are_a_corrupt_event(payload: bytes) -> None:
    with pytest.raises(CorruptEvent, match="TASKS:7"):
        decode(raw(payload), "TASKS")


def test_an_old_version_is_brought_up_to_date() -> None:
    class Split(Event):
        type = "test.split"
        version = 3
        upcasters = {
            1: lambda data: {**data, "whole": data["half"] * 2},
            2: lambda data: {"whole": data["whole"]},
        }
        example = {"whole": 4}
        whole: int

    try:
        event(Split)
        old = {"half": 2}
        assert upcast(Split, 1, old) == {"whole": 4}
        assert old == {"half": 2}
    finally:
        REGISTRY.pop("test.split", None)


def test_a_declaration_with_a_hole_is_refused() -> None:
    class Gap(Event):
        type = "test.gap"
        version = 3
        upcasters = {1: dict}
        example = {}

    with pytest.raises(TypeError, match="upcaster"):
        event(Gap)


def test_a_name_is_taken_once() -> None:
    class Again(Event):
        type = "task.queued"
        example = {}

    with pytest.raises(TypeError, match="twice"):
        event(Again)


def test_an_example_with_undeclared_fields_is_refused() -> None:
    class Extra(Event):
        type = "test.extra"
        example = {"surplus": 1}

    with pytest.raises(TypeError, match="surplus"):
        event(Extra)
