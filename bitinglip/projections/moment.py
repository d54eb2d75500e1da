"""A moment of the past, as people write it: pure.

- `now`: the last event that is stored
- `4711`: right after that event of TASKS
- `2026-01-31T12:00:00Z`: a time with its zone (RFC 3339; a blank may stand for the T)
- `10 min ago`, `1h 30m ago`: with s, min (or m), h, d and w, or their names in words
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bitinglip.errors import NotAMoment

UNITS = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "min": ("m", "min", "mins", "minute", "minutes"),
    "h": ("h", "hr", "hrs", "hour", "hours"),
    "d": ("d", "day", "days"),
    "w": ("w", "week", "weeks"),
}
SECONDS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SECONDS_OF = {word: SECONDS[unit] for unit, words in UNITS.items() for word in words}
_SEQUENCE = re.compile(r"\d{1,18}")
_PART = r"(\d{1,9}(?:\.\d{1,6})?)\s*([a-z]+)"
_AGO = re.compile(rf"(?:{_PART}\s*)+ago")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(?:([Zz])|([+ -])(\d\d:\d\d))")
LONGEST = timedelta(days=36_525)


@dataclass(frozen=True, slots=True)
class Moment:
    """Up to where each stream had come at a time."""

    at: datetime
    """The time (UTC); of a sequence, when the server stored that event."""
    sequences: Mapping[str, int]
    """The last sequence of each stream that was stored by then; 0 for one without any."""

    def of(self, stream: str) -> int:
        """Return the last sequence of a stream."""
        return self.sequences.get(stream, 0)


def parse(text: str, now: datetime) -> int | datetime:
    """Return the sequence of TASKS, or the time, that is meant.

    Raises:
        NotAMoment: it is written in none of the ways.
    """
    asked = " ".join(text.split())
    if not asked.isascii():
        raise NotAMoment(text=text[:100])
    if asked == "now":
        return now
    if _SEQUENCE.fullmatch(asked):
        return int(asked)
    if (found := _TIME.fullmatch(asked)) is not None:
        return _time(text, found)
    if _AGO.fullmatch(asked):
        return now - _distance(text, asked)
    raise NotAMoment(text=text[:100])


def _time(text: str, found: re.Match[str]) -> datetime:
    day, clock, utc, sign, offset = found.groups()
    # In an address a plus that is not escaped arrives as a blank.
    zone = "+00:00" if utc else f"{'-' if sign == '-' else '+'}{offset}"
    whole, point, fraction = clock.partition(".")
    try:
        return datetime.fromisoformat(f"{day}T{whole}{point}{fraction[:6]}{zone}").astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise NotAMoment(text=text[:100]) from error


def _distance(text: str, asked: str) -> timedelta:
    parts = re.findall(_PART, asked.removesuffix("ago"))
    if unknown := [unit for _, unit in parts if unit not in _SECONDS_OF]:
        raise NotAMoment(text=f"{text[:80]} ({unknown[0]})")
    distance = sum(float(number) * _SECONDS_OF[unit] for number, unit in parts)
    if distance > LONGEST.total_seconds():
        raise NotAMoment(text=text[:100])
    return timedelta(seconds=distance)
