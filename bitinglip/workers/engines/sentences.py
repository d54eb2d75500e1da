"""Long texts to pieces that a model can speak: whole sentences where that is possible."""

from __future__ import annotations

import re
from collections.abc import Iterator

SENTENCE = re.compile(r"(?<=[.!?…。！？;:])\s+|(?<=[。！？])|\n+")
BREAK = re.compile(r"(?<=[,、，)\]–—-])\s*|\s+")


def pieces(text: str, most: int) -> list[str]:
    """Split a text into pieces of at most `most` characters, together all its words in order.

    Sentences are kept whole, and put together while there is room; one that is too long is split at commas and spaces,
    and a word that is too long wherever it must be.
    """
    return list(_packed(_short(text, most), most))


def _short(text: str, most: int) -> Iterator[str]:
    for sentence in _split(SENTENCE, text):
        if len(sentence) <= most:
            yield sentence
            continue
        words = (word[at : at + most] for word in _split(BREAK, sentence) for at in range(0, len(word), most))
        yield from _packed(words, most)


def _split(where: re.Pattern[str], text: str) -> Iterator[str]:
    return (part for part in map(str.strip, where.split(text)) if part)


def _packed(parts: Iterator[str], most: int) -> Iterator[str]:
    kept = ""
    for part in parts:
        if kept and len(kept) + 1 + len(part) > most:
            yield kept
            kept = ""
        kept = f"{kept} {part}" if kept else part
    if kept:
        yield kept
