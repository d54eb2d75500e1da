"""A part of the log, from one place to another, at the pace at which it was recorded or at another one."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bitinglip.cli.client import Client, ServerEvent
from bitinglip.errors import InvalidInput

_SPEED = re.compile(r"(\d+(?:\.\d+)?)x?")
_FIRST = "select min(sequence) from events where stream = '{stream}' and recorded_at >= timestamp '{at}'"


@dataclass(frozen=True, slots=True)
class Part:
    """Events of one stream: from a place on, up to another one, both included."""

    stream: str
    begin: int | datetime
    end: int | datetime | None
    """None: to the last event of now."""
    types: tuple[str, ...] = ()

    def events(self, gateway: Client) -> Iterator[ServerEvent]:
        """Yield the events, in the order of the log.

        Raises:
            ProblemAnswer, GatewayUnreachable: see `Client.events`.
        """
        params: dict[str, Any] = {"stream": self.stream, "follow": "false", "after": self._first(gateway) - 1}
        params |= {"types": ",".join(self.types)} if self.types else {}
        for event in gateway.events("/v1/events", params):
            if self._is_over(event):
                return
            yield event

    def _first(self, gateway: Client) -> int:
        """Return the sequence from which on it is read."""
        if isinstance(self.begin, int):
            return max(1, self.begin)
        at = self.begin.astimezone(UTC).replace(tzinfo=None).isoformat(" ")
        answer = gateway.request("POST", "/v1/query", body={"sql": _FIRST.format(stream=self.stream.upper(), at=at)})
        return answer["rows"][0][0] or 2**62

    def _is_over(self, event: ServerEvent) -> bool:
        if isinstance(self.end, datetime):
            return time_of(event) > self.end
        return self.end is not None and int(event.id) > self.end


class Pace:
    """Lets recorded moments come as far apart as they were, or so many times as fast."""

    def __init__(self, speed: float) -> None:
        """`speed`: infinite for no pauses at all."""
        self.speed = speed
        self._began: tuple[datetime, float] | None = None

    def keep(self, events: Iterable[ServerEvent]) -> Iterator[ServerEvent]:
        """Yield each event when its time has come; one that is late comes at once."""
        for event in events:
            at = time_of(event)
            first, started = self._began = self._began or (at, time.monotonic())
            due = started + (at - first).total_seconds() / self.speed
            if (left_s := due - time.monotonic()) > 0:
                time.sleep(left_s)
            yield event


def time_of(event: ServerEvent) -> datetime:
    """Return when an event happened, as its writer says."""
    return datetime.fromisoformat(event.data["time"])


def place(option: str, text: str) -> int | datetime:
    """Return a place in the log: a sequence, or a time (RFC 3339; without an offset it is UTC).

    Raises:
        InvalidInput: it is neither.
    """
    if text.isdecimal() and text.isascii():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidInput(field=option, problem=f"{text!r} is neither a sequence nor a time") from error
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def speed(text: str) -> float:
    """Return how many times as fast, infinite for `max`.

    Raises:
        InvalidInput: it is not of the form 10x or max.
    """
    if text == "max":
        return math.inf
    match = _SPEED.fullmatch(text)
    if match is None or float(match[1]) == 0:
        raise InvalidInput(field="--speed", problem=f"{text!r} is not of the form 10x, 0.5x or max")
    return float(match[1])


def conditions(submitted: dict[str, Any]) -> dict[str, Any]:
    """Return, for the body of a task, under what conditions a submitted one was to run."""
    found: dict[str, Any] = {}
    if needs := submitted.get("requires"):
        found["requires"] = {"vram_gb": needs.get("vram_gb", 0), "label": needs.get("labels", [])}
    if submitted.get("timeout_ms") is not None:
        found["timeout_s"] = submitted["timeout_ms"] / 1000
    return found
