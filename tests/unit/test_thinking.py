"""Thoughts and answers, by property: what is told apart does not depend on how the text fell into tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.decoding import REPLACEMENT
from bitinglip.workers.engines.thinking import BEGIN, END, Splitter, Spoken, Tags, Trimmer


class Pieces:
    """A tokenizer whose tokens are these pieces of UTF-8, which may cut a character; unknown ones are token 0."""

    unk_token_id = 0

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = [b"?", *pieces]

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return a piece's number."""
        return self._pieces.index(token.encode()) if token.encode() in self._pieces else self.unk_token_id

    def decode(self, ids: Sequence[int], **_: object) -> str:
        """Return the text of tokens."""
        return b"".join(self._pieces[number] for number in ids).decode("utf-8", "replace")


TAGS = Tags(1, 2)
texts = st.text(alphabet="ab \n\té🦉", max_size=20)
cuts = st.sets(st.integers(1, 60))


def cut(text: str, at: set[int]) -> list[bytes]:
    """Cut a text's bytes into pieces."""
    whole = text.encode()
    ends = sorted({0, len(whole), *(place for place in at if place < len(whole))})
    return [whole[begin:end] for begin, end in itertools.pairwise(ends)]


def split(splitter: Splitter, tokens: Sequence[int]) -> Spoken:
    """Return both parts, joined from what was shown at each token."""
    shown = [*map(splitter.push, tokens), splitter.finish()]
    return Spoken("".join(each.thought for each in shown), "".join(each.answer for each in shown))


@given(texts, texts, cuts, cuts, st.booleans(), st.integers(0, 60))
def test_the_pieces_are_the_trimmed_texts_wherever_it_ends(
    thought: str, answer: str, one: set[int], two: set[int], by_prompt: bool, most: int
) -> None:
    first, second = cut(thought, one), cut(answer, two)
    tokenizer = Pieces([BEGIN.encode(), END.encode(), *first, *second])
    before = list(range(3, 3 + len(first)))
    after = list(range(3 + len(first), 3 + len(first) + len(second)))
    said = ([] if by_prompt else [TAGS.begin]) + [*before, TAGS.end, *after]
    spoken = split(Splitter(tokenizer, (), TAGS, thinking=by_prompt), said[:most])
    thoughts, answers = ([token for token in part if token in said[:most]] for part in (before, after))
    assert spoken.thought == tokenizer.decode(thoughts).rstrip(REPLACEMENT).lstrip("\n").rstrip()
    assert spoken.answer == tokenizer.decode(answers).rstrip(REPLACEMENT).lstrip("\n")


@given(texts, cuts)
def test_what_was_not_thought_is_left_as_it_is(text: str, at: set[int]) -> None:
    pieces = cut(text, at)
    tokenizer = Pieces([BEGIN.encode(), END.encode(), *pieces])
    said = range(3, 3 + len(pieces))
    for tags in (TAGS, None):
        assert split(Splitter(tokenizer, (), tags), said) == ("", text)


@pytest.mark.parametrize(
    ("said", "thinking", "spoken"),
    [
        ([3, 1, 3], False, ("", "a<think>a")),
        ([3, 2, 3], False, ("", "a</think>a")),
        ([1, 2, 3], True, ("", "a")),
        ([1, 3, 2, 3, 2, 1], False, ("a", "a</think><think>")),
        ([2], True, ("", "")),
        ([1, 3, 1], False, ("a<think>", "")),
    ],
)
def test_a_tag_counts_only_where_it_turns_something(said: list[int], thinking: bool, spoken: tuple[str, str]) -> None:
    tokenizer = Pieces([BEGIN.encode(), END.encode(), b"a"])
    assert split(Splitter(tokenizer, (), TAGS, thinking=thinking), said) == spoken


def test_tags_are_two_tokens_of_the_vocabulary() -> None:
    assert Tags.of(Pieces([BEGIN.encode(), END.encode()])) == TAGS
    assert Tags.of(Pieces([BEGIN.encode(), b"</", b"think>"])) is None
    assert Tags.of(Pieces([])) is None


@pytest.mark.parametrize(
    ("prompt", "opened"), [([3, 1], True), ([3, 1, 4], True), ([1, 3], False), ([1, 4, 2, 4], False), ([], False)]
)
def test_a_prompt_opens_a_thought_if_it_ends_with_the_begin_tag(prompt: list[int], opened: bool) -> None:
    tokenizer = Pieces([BEGIN.encode(), END.encode(), b"a", b"\n"])
    assert TAGS.opened(prompt, tokenizer) is opened


@given(st.lists(st.text(alphabet="a \n", max_size=5)), st.booleans(), st.booleans())
def test_a_trimmed_text_is_the_same_in_any_pieces(pieces: list[str], begin: bool, end: bool) -> None:
    trimmer = Trimmer(begin=begin, end=end)
    whole = "".join(pieces)
    whole = whole.lstrip("\n") if begin else whole
    assert "".join(map(trimmer.push, pieces)) == (whole.rstrip() if end else whole)
