"""Tokens to words: where each begins and ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator

UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
"""Languages that are written without spaces: each whole character is a word of its own."""
UNFINISHED = "\ufffd"
"""What a decoder gives for a character of which some bytes are missing."""


def words(tokens: list[int], decode: Callable[[list[int]], str], language: str) -> Iterator[tuple[str, int, int]]:
    """Yield each word, the index of its first token and the index after its last one."""
    pieces = list(_whole(tokens, decode))
    begun = 0
    while begun < len(pieces):
        end = begun + 1
        while end < len(pieces) and not _begins(pieces[end][0], language):
            end += 1
        text = "".join(piece for piece, _, _ in pieces[begun:end])
        if text.strip():
            yield text, pieces[begun][1], pieces[end - 1][2]
        begun = end


def _begins(piece: str, language: str) -> bool:
    """Tell whether a piece begins a word: punctuation belongs to the word before it."""
    if language in UNSPACED:
        return any(letter.isalnum() for letter in piece)
    return piece[0].isspace()


def _whole(tokens: list[int], decode: Callable[[list[int]], str]) -> Iterator[tuple[str, int, int]]:
    """Yield the shortest runs of tokens that are whole characters."""
    first = 0
    for index in range(len(tokens)):
        text = decode(tokens[first : index + 1])
        if text and (UNFINISHED not in text or index == len(tokens) - 1):
            yield text, first, index + 1
            first = index + 1
