"""Signed heads of a stream: which of its messages are leaves of its tree, what is signed of that, as an event. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from typing import NamedTuple

from bitinglip.events.archive import is_tick
from bitinglip.events.envelope import RawMessage
from bitinglip.events.ledger import LedgerSigned
from bitinglip.events.merkle import HASH_BYTES, Tree, event_leaf
from bitinglip.events.signing import SigningKey
from bitinglip.events.streams import LEDGER, MODELS, SCHEDULES, TASKS, WORKERS

AUDITED = (TASKS, WORKERS, MODELS, SCHEDULES, LEDGER)
"""The streams that have a tree."""
LEAVES_MOST = 800
"""Leaves that one head adds: its event has less than 48 KiB then."""
_CONTEXT = b"bitinglip signed head 1"
"""So that no signature of something else can pass for one of a head."""
_SIGNED = ".signed"


class Leaf(NamedTuple):
    """An event's place in its stream, and its leaf hash."""

    sequence: int
    hash: bytes


def leaf_of(stream: str, message: RawMessage) -> Leaf | None:
    """Return the leaf of a message; none if it is none: ticks leave the log, and heads don't sign themselves."""
    sequence, time_ns, subject, payload = message
    if is_tick(subject.encode(), payload) or (stream == LEDGER and subject.endswith(_SIGNED)):
        return None
    return Leaf(sequence, event_leaf(stream, sequence, time_ns, subject, payload))


def head_of(stream: str, before: Tree, leaves: Seq[Leaf], key: SigningKey) -> tuple[LedgerSigned, Tree]:
    """Return the signed head of a tree with more leaves, and the tree that it is the head of."""
    tree = Tree(before.size, list(before.peaks))
    tree.extend(leaf.hash for leaf in leaves)
    root, sequences = tree.root(), [leaf.sequence for leaf in leaves]
    signed = LedgerSigned(
        stream=stream,
        tree_size=tree.size,
        root_hash=root.hex(),
        sequences=sequences,
        leaves=base64.b64encode(b"".join(leaf.hash for leaf in leaves)).decode(),
        peaks=[peak.hex() for peak in tree.peaks],
        key_id=key.public.id,
        signature=key.sign(head_message(stream, tree.size, root, sequences[-1])),
    )
    return signed, tree


def head_message(stream: str, size: int, root: bytes, last_sequence: int) -> bytes:
    """Return what is signed of a head: the stream, the tree's size and root, and the sequence of its last event."""
    return b"\x00".join((_CONTEXT, stream.encode(), size.to_bytes(8), last_sequence.to_bytes(8), root))


def leaves_in(signed: LedgerSigned) -> Iterator[Leaf]:
    """Yield the leaves that a head adds.

    Raises:
        ValueError: they are not what their sequences say.
    """
    try:
        hashes = base64.b64decode(signed.leaves, validate=True)
    except binascii.Error as error:
        raise ValueError("its leaves are no Base64") from error
    if len(hashes) != HASH_BYTES * len(signed.sequences):
        raise ValueError("it has not as many leaves as sequences")
    for at, sequence in enumerate(signed.sequences):
        yield Leaf(sequence, hashes[at * HASH_BYTES : (at + 1) * HASH_BYTES])


def tree_of(signed: LedgerSigned | None) -> Tree:
    """Return the tree that a head is the head of, as far as it is known from there: its size and peaks.

    Raises:
        ValueError: its peaks are none.
    """
    if signed is None:
        return Tree.empty()
    tree = Tree(signed.tree_size, [bytes.fromhex(peak) for peak in signed.peaks])
    if not tree.is_sound():
        raise ValueError("it has not the peaks of a tree of its size")
    return tree
