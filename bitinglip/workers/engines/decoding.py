"""From tokens to text as they come: whole characters alone, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\ufffd"
MOST_WAITING = 8
"""Tokens that may wait for a character to become whole; what is not one by then is shown as it is."""
CONTEXT_TOKENS = 6
"""Tokens of a prompt that its continuation is decoded with."""


class Detokenizer:
    """Decodes one row's tokens one after the other.

    A token's text depends on its neighbours, so a window is decoded with and without the new tokens, and the difference
    is what they add. Text that ends in a broken character waits for the next token.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(prompt[-CONTEXT_TOKENS:])
        self._read = len(self._window)
        self._before = self._decode(self._window)

    def push(self, token: int) -> str:
        """Return the text that is certain after this token; it may be empty."""
        self._window.append(token)
        after = self._decode(self._window)
        if after.endswith(REPLACEMENT) and len(self._window) - self._read < MOST_WAITING:
            return ""
        added = after[len(self._before) :]
        self._window = self._window[self._read :]
        self._read = len(self._window)
        self._before = self._decode(self._window)
        return added

    def finish(self) -> str:
        """Return what was held back, without a character that never became whole."""
        return self._decode(self._window)[len(self._before) :].rstrip(REPLACEMENT)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) if ids else ""


class StopScanner:
    """Looks for stop texts in text that comes in pieces; what it finds does not depend on where the pieces end."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=1)
        self._held = ""

    def push(self, piece: str, *, last: bool = False) -> tuple[str, bool]:
        """Return what can be shown, and whether a stop text was met (what is shown then ends before it).

        The stop text that is complete first counts. An end that may be the beginning of a stop text is held back,
        unless this is the last piece.
        """
        text = self._held + piece
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        shown = len(text) if last else len(text) - self._possible_beginning(text)
        self._held = text[shown:]
        return text[:shown], False

    def _possible_beginning(self, text: str) -> int:
        """Return the length of the longest end of the text that is a stop text's beginning."""
        for size in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
