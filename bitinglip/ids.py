"""Identifiers: ULIDs (https://github.com/ulid/spec) in Crockford base 32, from an injected clock and random source."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from typing import NewType

TaskId = NewType("TaskId", str)
EventId = NewType("EventId", str)
WorkerId = NewType("WorkerId", str)
NodeId = NewType("NodeId", str)
KeyId = NewType("KeyId", str)
Sequence = NewType("Sequence", int)
"""Position of an event in its stream, from 1; 0 stands for "before the first"."""

ULID_PATTERN = "[0-7][0-9A-HJKMNP-TV-Z]{25}"
NAME_PATTERN = "[a-z0-9][a-z0-9_-]{0,62}"
"""Worker and node ids: one subject token, at most 63 characters."""

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
RANDOM = 2**80 - 1
"""The bits of a ULID that are random; those above tell the time."""
_ULID = re.compile(ULID_PATTERN)


def is_ulid(text: str) -> bool:
    """Tell whether the text is a ULID in its canonical (upper case) form."""
    return _ULID.fullmatch(text) is not None


def encode_ulid(value: int) -> str:
    """Encode a number of 128 bits as the 26 characters of a ULID."""
    return _encode_time(value >> 80) + _encode_random(value & RANDOM)


def _encode_time(ms: int) -> str:
    """Encode 48 bits as the first 10 characters."""
    return "".join([_PAIRS[(ms >> shift) & 1023] for shift in (40, 30, 20, 10, 0)])


def _encode_random(bits: int) -> str:
    """Encode 80 bits as the other 16: written out, for it is done for each event."""
    pairs = _PAIRS
    return (
        f"{pairs[bits >> 70]}{pairs[bits >> 60 & 1023]}{pairs[bits >> 50 & 1023]}{pairs[bits >> 40 & 1023]}"
        f"{pairs[bits >> 30 & 1023]}{pairs[bits >> 20 & 1023]}{pairs[bits >> 10 & 1023]}{pairs[bits & 1023]}"
    )


class RandomBits:
    """A source of numbers of 80 bits from the operating system, which is asked for many at once.

    Each question gives the interpreter away to another thread for as long as that wants it: dear in a process whose
    event loop writes an id an event beside a thread that works. Not to be shared over a fork.
    """

    AT_ONCE = 128

    def __init__(self) -> None:
        self._waiting = iter(list[int]())

    def __call__(self) -> int:
        """Return a number that nobody else has got, in whatever thread."""
        for bits in self._waiting:
            return bits
        drawn = os.urandom(10 * self.AT_ONCE)
        fresh = iter([int.from_bytes(drawn[at : at + 10], "big") for at in range(0, len(drawn), 10)])
        mine, self._waiting = next(fresh), fresh
        return mine


class Ulids:
    """A source of ULIDs.

    `clock` returns seconds since 1970, `random` 80 bits. Both can be replaced by fixed ones in a test.
    """

    def __init__(self, clock: Callable[[], float] = time.time, random: Callable[[], int] | None = None) -> None:
        self._clock = clock
        self._random = random or RandomBits()
        self._time = (0, _encode_time(0))

    def __call__(self) -> str:
        """Return a new ULID."""
        ms, (latest, text) = int(self._clock() * 1000), self._time
        if ms != latest:
            text = _encode_time(ms)
            self._time = (ms, text)
        return text + _encode_random(self._random())


def task_id_for_key(key_id: str, idempotency_key: str) -> TaskId:
    """Return the one task id that belongs to this caller's idempotency key.

    The same key always makes the same id, so that the log itself refuses the second task: nothing else is stored.
    """
    digest = hashlib.sha256(f"{key_id}\0{idempotency_key}".encode()).digest()
    return TaskId(encode_ulid(int.from_bytes(digest[:16], "big")))
