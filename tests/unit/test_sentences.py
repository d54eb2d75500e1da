"""Pieces of a text to speak, and words of a transcript."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.sentences import pieces
from bitinglip.workers.engines.words import words


@given(st.text(alphabet="ab .,!?\n。éß", max_size=300), st.integers(min_value=1, max_value=40))
def test_pieces_are_short_and_lose_nothing(text: str, most: int) -> None:
    said = pieces(text, most)
    assert all(0 < len(piece) <= most for piece in said)
    assert re.sub(r"\s", "", "".join(said)) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "most", "said"),
    [
        ("One. Two. Three.", 100, ["One. Two. Three."]),
        ("One. Two. Three.", 10, ["One. Two.", "Three."]),
        ("One, two and three.", 10, ["One, two", "and three."]),
        ("Unbelievable!", 5, ["Unbel", "ievab", "le!"]),
        ("今日は。明日は。", 5, ["今日は。", "明日は。"]),
        ("", 5, []),
    ],
)
def test_sentences_stay_whole_where_there_is_room(text: str, most: int, said: list[str]) -> None:
    assert pieces(text, most) == said


def decode(tokens: list[int]) -> str:
    """Decode bytes, as a byte-level tokenizer does."""
    return bytes(tokens).decode("utf-8", errors="replace")


@given(st.text(alphabet="aé ,.🦉日", max_size=60), st.sampled_from(["en", "ja"]))
def test_words_are_in_order_and_lose_nothing(text: str, language: str) -> None:
    found = list(words(list(text.encode()), decode, language))
    assert re.sub(r"\s", "", "".join(word for word, _, _ in found)) == re.sub(r"\s", "", text)
    borders = [border for _, first, after in found for border in (first, after)]
    assert borders == sorted(borders)


def test_a_word_keeps_its_punctuation() -> None:
    said = list(words(list(b" So, it is."), decode, "en"))
    assert [word.strip() for word, _, _ in said] == ["So,", "it", "is."]
    assert [word for word, _, _ in words(list("日本。".encode()), decode, "ja")] == ["日", "本。"]
