"""Events of every version that a type ever had are read as the newest: by Python, and by the SQL."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import CorruptEvent
from bitinglip.events.envelope import Messages, RawMessage, decode, encode
from bitinglip.events.registry import REGISTRY, Event, event, upcast
from bitinglip.projections.batch import newest
from bitinglip.projections.writer import write
from scripts.golden_events import TIME
from tests.unit.projection_support import fresh_database

NAME = "task.mended"


def _named_parts(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had `what`, one word; version 2 has `parts`, a list."""
    return {name: value for name, value in data.items() if name != "what"} | {"parts": [data["what"]]}


def _in_milliseconds(data: dict[str, Any]) -> dict[str, Any]:
    """Version 2 had seconds; version 3 has milliseconds."""
    return {name: value for name, value in data.items() if name != "took_s"} | {"took_ms": data["took_s"] * 1000}


class Mended(Event):
    """Something was mended: a type of three versions."""

    type = NAME
    version = 3
    upcasters = {1: _named_parts, 2: _in_milliseconds}
    example = {"task_id": "t", "parts": ["a"], "took_ms": 2000}

    task_id: str
    parts: list[str]
    took_ms: int


VERSIONS: dict[int, dict[str, Any]] = {
    1: {"task_id": "t", "what": "a", "took_s": 2},
    2: {"task_id": "t", "parts": ["a"], "took_s": 2},
    3: {"task_id": "t", "parts": ["a"], "took_ms": 2000},
}


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    event(Mended)
    yield
    del REGISTRY[NAME]


def stored(version: int, sequence: int, **more: Any) -> RawMessage:
    """Return an event as a writer of that version stored it."""
    now = orjson.loads(encode(Mended.model_validate(Mended.example), id="e", source="/t", time=TIME, about="t"))
    old = now | {"dataschema": f"urn:bitinglip:{NAME}:{version}", "data": VERSIONS.get(version, VERSIONS[3]) | more}
    return RawMessage(sequence, int(TIME.timestamp() * 1e9), "bl.task.t.mended", orjson.dumps(old))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_each_version_is_read_as_the_newest(version: int) -> None:
    read = decode(stored(version, 1), "TASKS").event
    assert isinstance(read, Mended)
    assert (read.parts, read.took_ms) == (["a"], 2000)


def test_the_sql_has_each_version_as_the_newest() -> None:
    with fresh_database() as database:
        write(database, "TASKS", [stored(version, version) for version in (1, 2, 3)])
        rows = database.rows("select version, data ->> '$.parts[0]', data ->> '$.took_ms' from events")
    assert rows == [(3, "a", "2000")] * 3


def test_what_is_new_already_is_not_touched_and_a_newer_one_is_kept() -> None:
    messages = Messages.of([stored(3, 1), stored(4, 2, mood="blue")])
    assert newest(messages, REGISTRY) is messages
    later = decode(stored(4, 2, mood="blue"), "TASKS").event
    assert isinstance(later, Mended)
    assert later.model_extra == {"mood": "blue"}


def test_fields_that_nobody_knows_stay_on_the_way_up() -> None:
    [message] = newest(Messages.of([stored(1, 1, mood="blue")]), REGISTRY)
    assert orjson.loads(message.payload)["data"]["mood"] == "blue"


@given(st.dictionaries(st.text(), st.integers(), max_size=5), st.sampled_from([1, 2]))
def test_an_upcaster_leaves_what_it_is_given_as_it_is(more: dict[str, int], version: int) -> None:
    data = more | VERSIONS[version]
    before = copy.deepcopy(data)
    upcast(Mended, version, data)
    assert data == before


def test_an_old_event_that_does_not_go_up_is_corrupt_and_kept_in_the_sql() -> None:
    broken = stored(1, 1)
    document = orjson.loads(broken.payload)
    del document["data"]["what"]
    broken = broken._replace(payload=orjson.dumps(document))
    with pytest.raises(CorruptEvent):
        decode(broken, "TASKS")
    with fresh_database() as database:
        write(database, "TASKS", [broken, stored(2, 2)])
        assert database.rows("select version from events order by sequence") == [(1,), (3,)]


@pytest.mark.parametrize("steps", [{}, {1: _named_parts}, {2: _in_milliseconds}, {1: _named_parts, 3: dict}])
def test_a_type_without_a_whole_chain_of_upcasters_is_refused(steps: dict[int, Any]) -> None:
    with pytest.raises(TypeError, match="needs an upcaster"):
        event(type("Broken", (Mended,), {"type": "task.broken", "upcasters": steps}))
