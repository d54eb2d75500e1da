"""The catalogue of event types: stable name -> class, version, upcasters, example.

An event class declares itself with `@event`. The decorator refuses, at import, a version without a whole chain of
upcasters, and an example that does not validate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns the data of one version into the next one's; pure, and leaves its argument as it is."""

SCHEMA_PREFIX = "urn:bitinglip:"


class Event(BaseModel):
    """A fact that happened: frozen, versioned; fields that this version does not know are kept as they came."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: ClassVar[str]
    version: ClassVar[int] = 1
    lasting: ClassVar[bool] = True
    """False for a tick, which has a time to live in the log: it is neither archived nor signed."""
    upcasters: ClassVar[Mapping[int, Upcaster]] = {}
    example: ClassVar[dict[str, Any]]

    @classmethod
    def schema_urn(cls) -> str:
        """Return the CloudEvents `dataschema`, which bears the version."""
        return f"{SCHEMA_PREFIX}{cls.type}:{cls.version}"


_E = TypeVar("_E", bound=type[Event])

REGISTRY: dict[str, type[Event]] = {}
"""Every event type by its stable name."""


def event(cls: _E) -> _E:
    """Enter an event class into the catalogue.

    Raises:
        TypeError: the name is taken, a step of the upcasters is missing, or the example does not validate.
    """
    if cls.type in REGISTRY:
        raise TypeError(f"the event type {cls.type} is declared twice")
    if set(cls.upcasters) != set(range(1, cls.version)):
        raise TypeError(f"{cls.type} v{cls.version} needs an upcaster from each of the versions before it")
    undeclared = set(cls.example) - set(cls.model_fields)
    if undeclared:
        raise TypeError(f"the example of {cls.type} has fields that it does not declare: {sorted(undeclared)}")
    REGISTRY[cls.type] = cls
    return cls


def is_lasting(type_name: str) -> bool:
    """Tell whether events of a type stay in the log; a type that this version does not know is taken to stay."""
    cls = REGISTRY.get(type_name)
    return cls is None or cls.lasting


def upcast(cls: type[Event], version: int, data: dict[str, Any]) -> dict[str, Any]:
    """Bring data written as `version` to the class's version; newer data is left as it is (unknown fields are kept)."""
    for step in range(version, cls.version):
        data = cls.upcasters[step](data)
    return data
