"""Proof that events are in the signed log: each with its path to the root of the head that covers it.

Whoever has the proof and the public key needs nothing else: no log, no gateway, no network.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from bitinglip.errors import ProofUnusable
from bitinglip.events import subjects
from bitinglip.events.auditing import Head, head_in
from bitinglip.events.direct import get_first_after
from bitinglip.events.envelope import RawMessage
from bitinglip.events.heads import head_message, leaf_of, leaves_in, tree_of
from bitinglip.events.log import EventLog
from bitinglip.events.merkle import Grown, Tree, verify_inclusion
from bitinglip.events.signing import PublicKey
from bitinglip.events.streams import LEDGER


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class ProofHead(_Part):
    """A signed head, without the leaves."""

    tree_size: int
    root_hash: str
    last_sequence: int
    """Sequence of the last event that it covers."""
    key_id: str
    signature: str

    @classmethod
    def of(cls, head: Head) -> Self:
        """Return what a proof needs of a head."""
        signed = head.signed
        return cls(
            tree_size=signed.tree_size,
            root_hash=signed.root_hash,
            last_sequence=signed.sequences[-1],
            key_id=signed.key_id,
            signature=signed.signature,
        )


class ProvedEvent(_Part):
    """An event as the log holds it, its place in the tree, and the path from there to the root of a head."""

    sequence: int
    time_ns: int
    subject: str
    payload: str
    """Its bytes, in Base64."""
    index: int
    """Its place among the leaves, from 0."""
    head: int
    """Its head's place among the proof's heads, from 0."""
    path: list[str]

    @property
    def message(self) -> RawMessage:
        """The event as it came from the log."""
        return RawMessage(self.sequence, self.time_ns, self.subject, base64.b64decode(self.payload, validate=True))


class Proof(_Part):
    """Events of one stream, and the proof that they are in its signed log."""

    format: int = 1
    stream: str
    about: str
    """What the events are about, as a task's id."""
    events: list[ProvedEvent]
    heads: list[ProofHead]
    uncovered: list[int]
    """Sequences of events that no head covers yet."""
    keys: dict[str, str]
    """Public keys of the heads, in Base64, by their ids: what the log says of itself."""

    @classmethod
    def read(cls, text: bytes) -> Self:
        """Read a proof's document.

        Raises:
            ProofUnusable: it is none.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ProofUnusable(problem=str(error.errors()[0]["msg"])) from error

    def first_fault(self, keys: Mapping[str, PublicKey]) -> str | None:
        """Return the first thing that is wrong with it, by keys whose signatures count; none if it holds."""
        faults = [head_fault(self.stream, head, keys) for head in self.heads]
        faults += [self._fault(event) for event in self.events]
        return next((fault for fault in faults if fault is not None), None)

    def _fault(self, event: ProvedEvent) -> str | None:
        where = f"{self.stream}:{event.sequence} ({event.subject})"
        try:
            leaf = leaf_of(self.stream, event.message)
            head, path = self.heads[event.head], [bytes.fromhex(each) for each in event.path]
            root = bytes.fromhex(head.root_hash)
        except (ValueError, IndexError, OverflowError, binascii.Error) as error:
            return f"{where} cannot be read: {error}"
        if event.subject.split(".")[2:3] != [self.about]:
            return f"{where} is not about {self.about}"
        if leaf is None or not verify_inclusion(leaf.hash, event.index, head.tree_size, path, root):
            return f"{where} is not in the tree of its head"
        return None


def head_fault(stream: str, head: ProofHead, keys: Mapping[str, PublicKey]) -> str | None:
    """Return what is wrong with a head; none if a key that counts has signed it."""
    what = f"the head of {stream} at {head.tree_size} events"
    key = keys.get(head.key_id)
    if key is None:
        return f"{what} is signed with a key that is not known ({head.key_id})"
    try:
        message = head_message(stream, head.tree_size, bytes.fromhex(head.root_hash), head.last_sequence)
    except (ValueError, OverflowError) as error:
        return f"{what} cannot be read: {error}"
    return None if key.signed(message, head.signature) else f"{what} has a signature that is not that of its key"


class Place(NamedTuple):
    """A head, and the tree before it."""

    head: Head
    before: Tree


async def prove(log: EventLog, stream: str, about: str, messages: list[RawMessage], keys: dict[str, str]) -> Proof:
    """Return the proof for those of the messages that a head covers.

    Raises:
        NoServer: the server does not answer.
        NotAsSignedError: a head cannot be read.
        ValueError: a head's leaves, or its peaks, are none.
    """
    places: list[Place] = []
    events: list[ProvedEvent] = []
    uncovered: list[int] = []
    for message in messages:
        if leaf_of(stream, message) is None:
            continue
        if not places or message.sequence > places[-1].head.signed.sequences[-1]:
            place = await find(log, stream, message.sequence)
            if place is None:
                uncovered.append(message.sequence)
                continue
            places.append(place)
        events.append(_proved(message, places[-1], len(places) - 1))
    heads = [ProofHead.of(place.head) for place in places]
    return Proof(stream=stream, about=about, events=events, heads=heads, uncovered=uncovered, keys=keys)


def _proved(message: RawMessage, place: Place, head: int) -> ProvedEvent:
    signed = place.head.signed
    grown = Grown(place.before, [leaf.hash for leaf in leaves_in(signed)])
    index = place.before.size + signed.sequences.index(message.sequence)
    return ProvedEvent(
        sequence=message.sequence,
        time_ns=message.time_ns,
        subject=message.subject,
        payload=base64.b64encode(message.payload).decode(),
        index=index,
        head=head,
        path=[each.hex() for each in grown.inclusion(index)],
    )


async def find(log: EventLog, stream: str, sequence: int) -> Place | None:
    """Return the head that covers an event, and the tree before it; none if no head does.

    Heads stand in LEDGER in the order of what they cover, so that halving it finds one of a million in 20 steps.

    Raises:
        NoServer: the server does not answer.
        NotAsSignedError, ValueError: a head cannot be read.
    """
    subject = subjects.ledger_subject(stream, "signed")
    low, high = 0, await log.last_sequence(LEDGER)
    before: Head | None = None
    found: Head | None = None
    while low < high:
        middle = (low + high) // 2
        message = await get_first_after(log.connection, LEDGER, subject, middle)
        head = None if message is None else head_in(message)
        if head is not None and head.signed.sequences[-1] < sequence:
            before, low = head, head.sequence
        else:
            found, high = head or found, middle
    return None if found is None else Place(found, tree_of(None if before is None else before.signed))
