"""What a model thinks before it answers, kept apart from its answer: by the tokens around it, as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitinglip.workers.engines.decoding import Detokenizer

BEGIN, END = "<think>", "</think>"
TAIL_TOKENS = 4
"""Last tokens of a prompt among which the begin tag is looked for; after it there may be white space."""


@dataclass(frozen=True, slots=True)
class Tags:
    """The tokens around a thought."""

    begin: int
    end: int

    @classmethod
    def of(cls, tokenizer: Any) -> Tags | None:
        """Return the tags of a model that thinks; none if its vocabulary has them not as a token each."""
        begin, end = (_token(tokenizer, tag) for tag in (BEGIN, END))
        return None if begin is None or end is None else cls(begin, end)

    def opened(self, prompt: Sequence[int], tokenizer: Any) -> bool:
        """Tell whether a prompt ends with the begin tag, so that what comes next is a thought."""
        for token in reversed(prompt[-TAIL_TOKENS:]):
            if token == self.begin:
                return True
            if tokenizer.decode([token]).strip():
                return False
        return False


class Spoken(NamedTuple):
    """What is certain to be added to the thought, and to the answer."""

    thought: str = ""
    answer: str = ""


class Splitter:
    """Decodes one row's tokens one after the other into a thought, if there is one, and an answer.

    Args:
        tokenizer: Turns tokens into text.
        prompt: Tokens that the text goes on from; none if it begins anew.
        tags: The tokens around a thought; none: all is answer.
        thinking: Whether the thought was begun by the prompt; else it is if the first token is the begin tag.
    """

    def __init__(
        self, tokenizer: Any, prompt: Sequence[int] = (), tags: Tags | None = None, *, thinking: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._tags = tags
        self._first = True
        self._thinking = thinking
        self._detokenizer = Detokenizer(tokenizer, prompt)
        self._trimmer = Trimmer(begin=thinking, end=thinking)

    def push(self, token: int) -> Spoken:
        """Take a token; the tags are in neither part."""
        first, self._first = self._first, False
        if self._tags is not None and first and token == self._tags.begin:
            self._turn(thinking=True)
            return Spoken()
        if self._tags is not None and self._thinking and token == self._tags.end:
            left = self.finish()
            self._turn(thinking=False)
            return left
        return self._spoken(self._detokenizer.push(token))

    def finish(self) -> Spoken:
        """Return what was held back, without a character that never became whole."""
        return self._spoken(self._detokenizer.finish())

    def _turn(self, *, thinking: bool) -> None:
        self._thinking = thinking
        self._detokenizer = Detokenizer(self._tokenizer)
        self._trimmer = Trimmer(begin=True, end=thinking)

    def _spoken(self, piece: str) -> Spoken:
        text = self._trimmer.push(piece)
        return Spoken(thought=text) if self._thinking else Spoken(answer=text)


class Trimmer:
    """Takes the newlines from the beginning of a text that comes in pieces, and all white space from its end."""

    def __init__(self, *, begin: bool, end: bool) -> None:
        self._begin = begin
        self._end = end
        self._held = ""

    def push(self, piece: str) -> str:
        """Return what is certain to stay; white space waits for what comes after it."""
        text = self._held + piece
        if self._begin:
            text = text.lstrip("\n")
            self._begin = not text
        shown = text.rstrip() if self._end else text
        self._held = text[len(shown) :]
        return shown


def _token(tokenizer: Any, text: str) -> int | None:
    token = tokenizer.convert_tokens_to_ids(text)
    return token if isinstance(token, int) and token != tokenizer.unk_token_id else None
