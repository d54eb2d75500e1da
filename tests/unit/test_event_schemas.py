"""An event type's schema only widens within a version; what else changes needs a new one, with an upcaster."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator
from pydantic import Field

import bitinglip.events
from bitinglip.events.catalogue import schema_of, types
from bitinglip.events.registry import REGISTRY, Event
from scripts.golden_events import FOLDER as EVENTS
from scripts.golden_schemas import FOLDER, encoded, path_of, problems_of
from scripts.widening import breaks

ALL = {cls.type: cls for cls in types()}


def test_every_type_that_a_module_declares_is_in_the_catalogue() -> None:
    for module in pkgutil.iter_modules(bitinglip.events.__path__):
        importlib.import_module(f"bitinglip.events.{module.name}")
    declared = {cls.type for cls in REGISTRY.values() if cls.__module__.startswith("bitinglip.")}
    assert declared == set(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_no_version_has_changed_but_by_widening(name: str) -> None:
    cls = ALL[name]
    assert path_of(cls).exists(), "run `python -m scripts.golden_schemas`"
    assert problems_of(cls, path_of(cls).read_bytes()) == []
    assert path_of(cls).read_bytes() == encoded(cls), "run `python -m scripts.golden_schemas`"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_golden_events_are_what_the_schema_of_their_version_says(path: Any) -> None:
    name, _, version = path.stem.rpartition(".v")
    assert name in ALL, "a type is never dropped"
    assert int(version) <= ALL[name].version
    schema = orjson.loads(path.read_bytes())
    Draft202012Validator.check_schema(schema)
    event = orjson.loads((EVENTS / path.name).read_bytes())
    Draft202012Validator(schema).validate(event["data"])
    assert event["dataschema"] == schema["$id"]


class First(Event):
    """As it was."""

    type = "made.up"
    example = {}
    name: str
    sort: str | None = None
    count: int = Field(default=0, ge=0)


class Wider(First):
    """With an optional field more, and a bound less."""

    count: int = 0
    colour: str | None = None


class Required(First):
    """With a field more that has to be there."""

    colour: str


class Retyped(First):
    """With a field of another type."""

    count: str = ""  # type: ignore[assignment]


class Narrower(First):
    """With a field that may not be null any more."""

    sort: str = ""  # type: ignore[assignment]  # pyright: ignore[reportIncompatibleVariableOverride]


class Bounded(First):
    """With a bound more."""

    count: int = Field(default=0, ge=1)


class Without(Event):
    """Without a field."""

    type = "made.up"
    example = {}
    name: str
    count: int = Field(default=0, ge=0)


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (Wider, None),
        (Required, "data.colour has to be there"),
        (Retyped, "data.count was integer, and is string"),
        (Narrower, "data.sort may not be null"),
        (Bounded, "data.count: minimum was 0, and is 1"),
        (Without, "data.sort is gone"),
    ],
)
def test_what_is_a_break(after: type[Event], problem: str | None) -> None:
    found = breaks(schema_of(First), schema_of(after))
    assert (found == []) if problem is None else any(each.startswith(problem) for each in found), found
