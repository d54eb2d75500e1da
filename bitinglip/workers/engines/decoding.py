"""From tokens to text as they come: whole characters alone, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
MOST_HELD = 8
"""Tokens that may wait for a character to become whole; what is not one by then is shown as it is."""


class Detokenizer:
    """Decodes one row's tokens one after the other.

    A token's text depends on its neighbours, so a window is decoded with and without the new tokens, and the difference is
    what they add. Text that ends in a broken character waits for the next token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._read = 0

    def push(self, token: int) -> str:
        """Return the text that is certain after this token; it may be empty."""
        self._ids.append(token)
        before, after = self._decode(self._read), self._decode(len(self._ids))
        waiting = len(self._ids) - self._read
        if after.endswith(REPLACEMENT) and waiting < MOST_HELD:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        """Return what was held back."""
        added = self._decode(len(self._ids))[len(self._decode(self._read)) :]
        self._read = len(self._ids)
        return added

    def _decode(self, end: int) -> str:
        ids = self._ids[self._start : end]
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopScanner:
    """Looks for stop texts in text that comes in pieces; pure."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str, *, last: bool = False) -> tuple[str, bool]:
        """Return what can be shown, and whether a stop text was met (what is shown then ends before it).

        An end that may be the beginning of a stop text is held back, unless this is the last piece.
        """
        text = self._held + piece
        found = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self._held = ""
            return text[:found], True
        keep = 0 if last else self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def _possible_beginning(self, text: str) -> int:
        """Return the length of the longest end of the text that is a stop text's beginning."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
