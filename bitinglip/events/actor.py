"""Who asks: set at the gateway's door for the time of a request, read where an event is made.

It is a context variable, so that it reaches every task that a request starts and none of another's; what a process
does of its own accord has no actor. A node's agent takes it over from the command that it is sent.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

FIELDS = ("actorkey", "actoraddress", "requestid")
"""Names of the attributes in an event's envelope (CloudEvents extension attributes)."""
HEADERS = ("Bl-Actor-Key", "Bl-Actor-Address", "Bl-Request-Id")
"""Headers of a command to a node that bear the same."""


class Actor(NamedTuple):
    """Who made a request."""

    key_id: str | None
    """Name of the key that it came with; none on a gateway without one."""
    address: str | None
    """Where it came from, as far as `gateway.record_address` lets it be known."""
    request_id: str
    """The request's id, as its answer has it in `X-Request-Id`."""


_current: ContextVar[Actor | None] = ContextVar("actor", default=None)
current = _current.get
"""Returns on whose behalf something is done; none if nobody asked for it."""


@contextmanager
def acting(actor: Actor | None) -> Generator[None]:
    """Do what is inside on somebody's behalf."""
    token = _current.set(actor)
    try:
        yield
    finally:
        _current.reset(token)


def attributes(actor: Actor) -> dict[str, str]:
    """Return what an event's envelope says of who asked."""
    return {name: value for name, value in zip(FIELDS, actor, strict=True) if value is not None}


def of_envelope(document: Mapping[str, Any]) -> Actor | None:
    """Return who asked for an event; none if nobody did."""
    request_id = document.get("requestid")
    return None if request_id is None else Actor(document.get("actorkey"), document.get("actoraddress"), request_id)


def to_headers(actor: Actor | None) -> dict[str, str] | None:
    """Return the headers of a command that somebody asks for; none if nobody does."""
    if actor is None:
        return None
    return {name: value for name, value in zip(HEADERS, actor, strict=True) if value is not None}


def of_headers(headers: Mapping[str, str] | None) -> Actor | None:
    """Return who asks for a command; none if nobody is named."""
    key, address, request_id = [(headers or {}).get(name) for name in HEADERS]
    return None if request_id is None else Actor(key, address, request_id)
