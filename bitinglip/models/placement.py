"""Where a model fits, and which node is to fetch it: pure.

What a card can hold is judged by all of its memory: what is loaded there now makes room when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Literal

from bitinglip.models.state import Status

Verdict = Literal["fits", "unknown", "smaller", "quantised", "spread", "too_big"]
"""How a model fits: as it is; nobody knows; in a smaller precision; with its linear layers quantised; over two cards
of one machine; not at all."""
ORDER: tuple[Verdict, ...] = ("fits", "unknown", "smaller", "quantised", "spread", "too_big")
USED = 0.9
"""Part of a card's memory that models may take, unless a worker is told otherwise."""
CPU = "cpu"
PRECISIONS = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The precision that a checkpoint is loaded in, by safetensors' name of its own."""
QUANTISED = ("int8", "int4")
COMING: frozenset[Status] = frozenset({"wanted", "fetching"})
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """A device that models run on; a machine without one has its main memory, as `cpu`."""

    device: str
    memory_bytes: int

    @property
    def budget_bytes(self) -> int:
        """What models may take of it."""
        return int(self.memory_bytes * USED)


@dataclass(frozen=True, slots=True)
class Machine:
    """A node, as far as it matters here."""

    node_id: str
    cards: tuple[Card, ...]
    disk_free_bytes: int | None = None
    online: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to be placed."""

    need_bytes: Mapping[str, int]
    """Memory that it needs, by precision; empty: nobody knows."""
    dtype: str | None
    """Precision of most of its weights, by safetensors' name."""
    size_bytes: int
    """What it takes on a disk."""
    holdings: Mapping[str, Status]
    """What the nodes have of it."""

    def own_precision(self, device: str) -> str | None:
        """Return the precision that it is loaded in on a device, unless a worker is told otherwise."""
        if device == CPU and "float32" in self.need_bytes:
            return "float32"
        own = PRECISIONS.get(self.dtype or "")
        return own if own in self.need_bytes else max(self.need_bytes, key=self.need_bytes.__getitem__, default=None)


@dataclass(frozen=True, slots=True)
class CardFit:
    """How a model fits on one card."""

    device: str
    verdict: Verdict
    precision: str | None
    """The precision that the verdict is about."""
    need_bytes: int | None
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class MachineFit:
    """How a model fits on a node."""

    node_id: str
    online: bool
    verdict: Verdict
    status: Status
    """What the node has of it."""
    room: bool
    """Whether its disk has room for what is missing."""
    disk_free_bytes: int | None
    cards: tuple[CardFit, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no node is chosen, and what can be done instead."""

    problem: str
    instead: str


def fit(asked: Asked, machines: Iterable[Machine]) -> list[MachineFit]:
    """Return how a model fits on each machine."""
    return [_on_machine(asked, machine) for machine in machines]


def best(fits: Iterable[MachineFit]) -> Verdict:
    """Return the best verdict of machines that are there; `too_big` if none is."""
    return _best(each.verdict for each in fits if each.online)


def choose(asked: Asked, machines: Seq[Machine]) -> str | Refusal:
    """Return the node that is to have a model: one that has it or fetches it, or it fits and has the most free disk."""
    fits = [each for each in fit(asked, machines) if each.online]
    if not fits:
        return Refusal("no node is online", "start one: `bitinglip node`")
    holders = [each for each in fits if each.status == "stored" or each.status in COMING]
    if holders:
        return min(holders, key=lambda each: (each.status != "stored", ORDER.index(each.verdict), each.node_id)).node_id
    runs = [each for each in fits if each.verdict in {"fits", "unknown"}]
    roomy = [each for each in runs if each.room]
    if roomy:
        return min(
            roomy, key=lambda each: (ORDER.index(each.verdict), -(each.disk_free_bytes or 0), each.node_id)
        ).node_id
    return _no_room(asked, runs) if runs else _too_big(asked, fits)


def _on_machine(asked: Asked, machine: Machine) -> MachineFit:
    cards = tuple(_on_card(asked, card) for card in machine.cards)
    status = asked.holdings.get(machine.node_id, "absent")
    verdicts: list[Verdict] = [each.verdict for each in cards]
    if _spreads(asked, machine.cards):
        verdicts.append("spread")
    free = machine.disk_free_bytes
    return MachineFit(
        node_id=machine.node_id,
        online=machine.online,
        verdict=_best(verdicts),
        status=status,
        room=status == "stored" or free is None or free >= asked.size_bytes,
        disk_free_bytes=free,
        cards=cards,
    )


def _best(verdicts: Iterable[Verdict]) -> Verdict:
    best: Verdict = "too_big"
    for verdict in verdicts:
        best = verdict if ORDER.index(verdict) < ORDER.index(best) else best
    return best


def _on_card(asked: Asked, card: Card) -> CardFit:
    own = asked.own_precision(card.device)
    if own is None:
        return CardFit(card.device, "unknown", None, None, card.budget_bytes)
    for verdict, precision in _ways(asked, own):
        if asked.need_bytes[precision] <= card.budget_bytes:
            return CardFit(card.device, verdict, precision, asked.need_bytes[precision], card.budget_bytes)
    return CardFit(card.device, "too_big", own, asked.need_bytes[own], card.budget_bytes)


def _ways(asked: Asked, own: str) -> list[tuple[Verdict, str]]:
    """Return the ways to load it, the one that changes least first."""
    need = asked.need_bytes
    smaller = sorted(
        (each for each in need if each not in QUANTISED and need[each] < need[own]), key=lambda p: -need[p]
    )
    quantised = [each for each in QUANTISED if each in need]
    return [("fits", own), *[("smaller", each) for each in smaller], *[("quantised", each) for each in quantised]]


def _spreads(asked: Asked, cards: Seq[Card]) -> bool:
    """Whether it fits on the two largest cards of a machine together, as it is."""
    largest = sorted((card for card in cards if card.device != CPU), key=lambda card: -card.budget_bytes)[:2]
    own = asked.own_precision(largest[0].device) if len(largest) == 2 else None
    return own is not None and asked.need_bytes[own] <= sum(card.budget_bytes for card in largest)


def _no_room(asked: Asked, runs: Seq[MachineFit]) -> Refusal:
    most = max(runs, key=lambda each: each.disk_free_bytes or 0)
    return Refusal(
        f"it takes {_gib(asked.size_bytes)} on disk, and of the nodes that can run it {most.node_id} has the most "
        f"free, {_gib(most.disk_free_bytes or 0)}",
        f"make room (`bitinglip model prune --node {most.node_id}`), or name a node and let it make room itself",
    )


def _too_big(asked: Asked, fits: Seq[MachineFit]) -> Refusal:
    instead = [text for verdict in ORDER for each in fits if (text := _instead(each, verdict))]
    cards = [(card.budget_bytes, each.node_id, card) for each in fits for card in each.cards]
    if not cards:
        return Refusal("no node has told of its memory yet", "wait for its next heartbeat, or name a node")
    _, node_id, card = max(cards, key=lambda found: found[0])
    need = min(asked.need_bytes.values(), default=0)
    return Refusal(
        f"as it is it fits on no card: {card.device} of {node_id} can hold {_gib(card.budget_bytes)}",
        "; ".join(dict.fromkeys(instead)) or f"add a card that can hold {_gib(need)}, or take a smaller model",
    )


def _instead(each: MachineFit, verdict: Verdict) -> str | None:
    """Return what to do on a machine so that the model fits in this way; none if it does not."""
    if verdict == "spread":
        names = ",".join(card.device for card in sorted(each.cards, key=lambda card: -card.budget_bytes)[:2])
        return (
            f"spread it over two cards of {each.node_id} (`worker.device={names}`)" if each.verdict == verdict else None
        )
    card = next((card for card in each.cards if card.verdict == verdict), None)
    if card is None or verdict not in {"smaller", "quantised"}:
        return None
    setting = "worker.dtype" if verdict == "smaller" else "worker.quantize"
    return f"load it as {card.precision} on {each.node_id} (`{setting}`) and name that node"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
