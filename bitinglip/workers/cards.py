"""What a card of any make is: something that can be read, or is lost; and which cards a process sees."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from bitinglip.events.worker import DeviceReading


class CardLostError(Exception):
    """The card was there and is so no more, or does not answer; the message says what its driver told."""


class Source(Protocol):
    """Something that tells what a device has and does."""

    def read(self) -> DeviceReading:
        """Ask it; what it does not tell is none. May block for as long as a sick driver does.

        Raises:
            CardLostError: the card is lost.
        """
        ...


def visible(cards: Sequence[str], chosen: Iterable[str] | None) -> list[str]:
    """Return the ids of the cards that a process sees, in its own order.

    `chosen` are the entries of a variable such as CUDA_VISIBLE_DEVICES: numbers, or beginnings of ids. As for the
    drivers, one that names no card ends the list. None: all cards are seen.
    """
    if chosen is None:
        return list(cards)
    seen: list[str] = []
    for name in chosen:
        card = _named(cards, name)
        if card is None:
            break
        seen.append(card)
    return seen


def entries(variable: str | None) -> list[str] | None:
    """Return the entries of such a variable; none if it is not set."""
    return None if variable is None else [entry.strip() for entry in variable.split(",")]


def _named(cards: Sequence[str], name: str) -> str | None:
    if name.startswith("MIG-"):
        return name  # a slice of a card: it is in no list of cards
    if name.isdecimal():
        return cards[int(name)] if int(name) < len(cards) else None
    return next((card for card in cards if name.startswith("GPU-") and card.startswith(name)), None)
