"""Which card loads what: one plan for the whole cluster, made alike by every worker that sees the same facts.

No messages are exchanged about it. A model that has work and no card gets one; a model whose waiting work outweighs
its load time gets more. Idle cards come first, those with room before those that must drop something, and among these
the ones that were idle the longest: so a popular model stays where it is. A busy card changes its model only when
somebody has waited longer than the load takes, and after it has worked long enough since its last load to have paid
for it. Where cards are alike, a ring of hashes (of worker and model) says whose turn it is, as in consistent hashing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import ceil
from zlib import crc32

from bitinglip.workers.fairness import WEIGHTS
from bitinglip.workers.view import GIB, CardView, ClusterView, ModelView, Requires

WORTH = 1.0
"""Another card loads a model if the work that waits for each of its cards takes so many times as long as the load."""
SPARE = 1.25
"""A model has cards for so many times the work that comes for it, as long as idle ones are there."""
DWELL = 3.0
"""A busy card keeps a model for so many times as long as its load took: at most a quarter of the time goes in loads."""
GAP = 2.0
"""A model that has cards gets a busy one of another model's if its wait exceeds theirs by so many load times."""
WEIGHTLESS_S = 0.5
"""A model that loads as fast as this needs no plan: whoever is free runs it."""
LATE_S, LATE_LOADS = 60.0, 4.0
"""A model without any card gets one more loader each time that so many seconds and load times have passed: the first
one may be about to die, or know better."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a card is to load."""

    reference: str
    switches: bool = False
    """The card is not idle: it leaves work behind."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Who loads what, and who waits for what nobody has loaded, by worker."""

    loads: Mapping[str, Order] = field(default_factory=dict[str, Order])
    waits: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    weightless: frozenset[str] = frozenset()


@dataclass(slots=True)
class Demand:
    """Work that waits for one model, and asks the same of a card."""

    reference: str
    requires: Requires
    load_s: float
    need_bytes: int
    depth: int = 0
    work_s: float = 0.0
    work_rate: float = 0.0
    """Seconds of a card that come in a second."""
    oldest_s: float = 0.0
    urgency: float = 0.0
    """Longest wait, each in terms of the lane `normal`."""

    @property
    def wanted(self) -> int:
        """Number of cards that are worth it."""
        return max(1, int(self.work_s / (WORTH * self.load_s)), ceil(self.work_rate * SPARE))

    @property
    def first_loaders(self) -> int:
        """Number of cards that may begin, as long as nobody holds the model."""
        return self.wanted + int(self.oldest_s / (LATE_S + LATE_LOADS * self.load_s))


def plan(cluster: ClusterView) -> Plan:
    """Return who loads what; the same for the same facts."""
    weightless = frozenset(model.reference for model in cluster.models.values() if model.load_s <= WEIGHTLESS_S)
    demands = sorted(_demands(cluster, weightless), key=lambda demand: (-demand.urgency, demand.reference))
    holders = _holders(cluster.cards)
    pool = _Pool([card for card in cluster.cards if card.idle and card.loading is None])
    loads: dict[str, Order] = {}
    unmet: list[tuple[Demand, int]] = []
    for demand in demands:
        able = [card for card in holders.get(demand.reference, ()) if card.meets(demand.requires)]
        holding, about_to_run = len(able), sum(card.idle for card in able)
        short = (demand.wanted if holding else demand.first_loaders) - holding
        for _ in range(min(short, demand.depth - about_to_run)):
            card = pool.take(demand)
            if card is None:
                unmet.append((demand, holding))
                break
            loads[card.worker_id] = Order(demand.reference)
            holding += 1
    loads |= _switches(cluster, unmet, {demand.reference: demand.oldest_s for demand in demands})
    return Plan(loads, _waits(cluster, holders.keys() | weightless, pool), weightless)


def evicted(card: CardView, model: ModelView | Demand) -> tuple[str, ...] | None:
    """Return which models the card must drop for this one, none of them pinned; none if it does not fit even so."""
    if card.serves is not None and model.reference not in card.serves:
        return None
    dropped: list[str] = []
    count, taken = len(card.loaded), sum(held.taken_bytes for held in card.loaded)
    droppable = iter([held for held in card.loaded if held.reference not in card.pinned])
    while count >= card.most_loaded or not _has_room(card, taken, model.need_bytes):
        held = next(droppable, None)
        if held is None:
            return None
        dropped.append(held.reference)
        count, taken = count - 1, taken - held.taken_bytes
    return tuple(dropped)


def _has_room(card: CardView, taken: int, need: int) -> bool:
    return card.budget_bytes is None or taken + need <= card.budget_bytes


def _demands(cluster: ClusterView, weightless: frozenset[str]) -> Iterator[Demand]:
    found: dict[tuple[str, Requires], Demand] = {}
    for reference, routes in cluster.routes.items():
        model = cluster.models.get(reference)
        for route in routes:
            if not route.depth or model is None or reference in weightless:
                continue
            key = (reference, route.requires)
            if key not in found:
                found[key] = Demand(reference, route.requires, model.load_s, model.need_bytes)
            demand = found[key]
            demand.depth += route.depth
            demand.work_s += route.depth * route.task_s
            demand.work_rate += route.rate * route.task_s
            demand.oldest_s = max(demand.oldest_s, route.oldest_s)
            demand.urgency = max(demand.urgency, route.oldest_s * WEIGHTS[route.lane] / WEIGHTS["normal"])
    yield from found.values()


def _holders(cards: Iterable[CardView]) -> dict[str, list[CardView]]:
    """Return the cards that have a model, or soon will."""
    holders: dict[str, list[CardView]] = defaultdict(list)
    for card in cards:
        for held in card.loaded:
            holders[held.reference].append(card)
        if card.loading is not None and not card.holds(card.loading):
            holders[card.loading].append(card)
    return holders


def _waits(cluster: ClusterView, covered: Iterable[str], pool: _Pool) -> dict[str, frozenset[str]]:
    """Give each model that nobody has loaded to one idle card, which hears of its first task as it comes."""
    waits: dict[str, set[str]] = defaultdict(set)
    covered = set(covered)
    for reference, model in cluster.models.items():
        if reference not in covered:
            asked = {route.requires for route in cluster.routes.get(reference, ())} or {Requires()}
            for requires in asked:
                card = pool.find(Demand(reference, requires, model.load_s, model.need_bytes))
                if card is not None:
                    waits[card.worker_id].add(reference)
    return {worker: frozenset(references) for worker, references in waits.items()}


# --- busy cards -------------------------------------------------------------------------------------------------------


def _switches(
    cluster: ClusterView, unmet: Iterable[tuple[Demand, int]], waits_s: Mapping[str, float]
) -> dict[str, Order]:
    """Return which busy cards leave their models: those whose own work has waited least go first."""
    worth = [(demand, holding) for demand, holding in unmet if _bound_s(demand, holding) is not None]
    if not worth:
        return {}
    leaving = [card for card in cluster.cards if not card.idle and card.loading is None and _has_paid(card, cluster)]
    busy = sorted([(_own_wait_s(card, waits_s), card.worker_id, card) for card in leaving], key=lambda each: each[:2])
    found: dict[str, Order] = {}
    for demand, holding in worth:
        bound_s = _bound_s(demand, holding) or 0.0
        for index, (own_s, worker_id, card) in enumerate(busy):
            if own_s > bound_s:
                break
            if _will_do(card, demand):
                found[worker_id] = Order(demand.reference, switches=True)
                del busy[index]
                break
    return found


def _bound_s(demand: Demand, holding: int) -> float | None:
    """Return how long the work of a card that is left may have waited; none if no card is to be left for this."""
    if holding == 0:
        return float("inf") if demand.urgency > demand.load_s else None
    bound_s = demand.oldest_s - GAP * demand.load_s
    return bound_s if bound_s > 0 else None


def _has_paid(card: CardView, cluster: ClusterView) -> bool:
    """Tell whether the last load of a card has been worth it."""
    newest = min(card.loaded, key=lambda held: held.held_s, default=None)
    model = cluster.models.get(newest.reference) if newest else None
    return newest is None or model is None or newest.held_s >= DWELL * model.load_s


def _own_wait_s(card: CardView, waits_s: Mapping[str, float]) -> float:
    return max((waits_s.get(held.reference, 0.0) for held in card.loaded), default=0.0)


# --- idle cards -------------------------------------------------------------------------------------------------------


class _Pool:
    """Idle cards, found by how little it costs to give them another model."""

    def __init__(self, cards: Iterable[CardView]) -> None:
        self._taken: set[str] = set()
        self._rings: dict[tuple[int, int], list[tuple[int, str, CardView]]] = defaultdict(list)
        for card in cards:
            for cost, room in _places(card):
                self._rings[(cost, room)].append((_spot(card.worker_id), card.worker_id, card))
        for ring in self._rings.values():
            ring.sort(key=lambda place: place[:2])
        self._order = sorted(self._rings)

    def take(self, demand: Demand) -> CardView | None:
        """Return the card for a model, which is then no more in the pool; none if there is none."""
        card = self.find(demand)
        if card is not None:
            self._taken.add(card.worker_id)
        return card

    def find(self, demand: Demand) -> CardView | None:
        """Return the card for a model."""
        needed = demand.need_bytes // GIB
        for place in [place for place in self._order if place[1] >= needed]:
            card = self._on(self._rings[place], demand)
            if card is not None:
                return card
            if not self._rings[place]:
                self._order.remove(place)
        return None

    def _on(self, ring: list[tuple[int, str, CardView]], demand: Demand) -> CardView | None:
        """Return the first card that will do from the model's own spot on."""
        start = bisect_left(ring, (_spot(demand.reference),))
        passed = 0
        for index in range(start - len(ring), start):
            _, worker_id, card = ring[index]
            if worker_id in self._taken:
                passed += 1
            elif _will_do(card, demand):
                break
        else:
            card = None
        if passed * 2 > len(ring):
            ring[:] = [place for place in ring if place[1] not in self._taken]
        return card


def _will_do(card: CardView, demand: Demand) -> bool:
    return card.meets(demand.requires) and not card.holds(demand.reference) and evicted(card, demand) is not None


def _places(card: CardView) -> Iterator[tuple[int, int]]:
    """Yield (cost, room in GiB) of another model: beside those that are there, and instead of them."""
    if card.budget_bytes is None:
        yield 0 if len(card.loaded) < card.most_loaded else _cost(card.idle_s), 1 << 20
        return
    taken = sum(held.taken_bytes for held in card.loaded)
    if len(card.loaded) < card.most_loaded:
        yield 0, (card.budget_bytes - taken) // GIB
    if card.loaded:
        pinned = sum(held.taken_bytes for held in card.loaded if held.reference in card.pinned)
        yield _cost(card.idle_s), (card.budget_bytes - pinned) // GIB


def _cost(idle_s: float) -> int:
    """Return what it costs to drop a model, 1 to 8: the less, the longer it was of no use."""
    return 8 - min(7, int(idle_s / 4).bit_length())


@lru_cache(maxsize=1 << 14)
def _spot(name: str) -> int:
    return crc32(name.encode())
