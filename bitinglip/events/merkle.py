"""The Merkle tree of RFC 9162, section 2.1: roots, and proofs of inclusion and of consistency. Pure.

A tree that only grows is held as its peaks: the roots of the full subtrees that it consists of, the largest first, one
for each bit of its size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

HASH_BYTES = 32
EMPTY = hashlib.sha256(b"").digest()
"""Root of a tree without leaves."""
_LEAF = b"\x00"
_NODE = b"\x01"


def event_leaf(stream: str, sequence: int, time_ns: int, subject: str, payload: bytes) -> bytes:
    """Return the leaf hash of an event as the log holds it: any other byte or place of it makes another one."""
    told = subject.encode()
    parts = (stream.encode(), b"\x00", sequence.to_bytes(8), time_ns.to_bytes(8), len(told).to_bytes(4), told, payload)
    return leaf_hash(b"".join(parts))


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a leaf."""
    return hashlib.sha256(_LEAF + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(slots=True)
class Tree:
    """A tree that grows; it holds no more than its peaks."""

    size: int
    peaks: list[bytes]

    @classmethod
    def empty(cls) -> Tree:
        """Return the tree without leaves."""
        return cls(0, [])

    def add(self, leaf: bytes) -> None:
        """Add a leaf hash at the end."""
        size = self.size
        while size & 1:  # as in a binary counter: a carry joins two subtrees of one size
            leaf = node_hash(self.peaks.pop(), leaf)
            size >>= 1
        self.peaks.append(leaf)
        self.size += 1

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Add leaf hashes at the end."""
        for leaf in leaves:
            self.add(leaf)

    def root(self) -> bytes:
        """Return the root hash."""
        if not self.peaks:
            return EMPTY
        return reduce(lambda right, left: node_hash(left, right), reversed(self.peaks[:-1]), self.peaks[-1])

    def is_sound(self) -> bool:
        """Tell whether there are as many peaks as a tree of this size has."""
        return len(self.peaks) == self.size.bit_count() and all(len(peak) == HASH_BYTES for peak in self.peaks)


class Grown:
    """A tree, of which the leaves after an earlier size are known, and before it the peaks alone.

    That is enough for the proofs of all leaves since: a subtree that has one of them in it, or stands to the right of
    one, is made of leaves that are known, and one to its left that is not is a peak.
    """

    def __init__(self, before: Tree, leaves: Sequence[bytes]) -> None:
        self._before = before
        self._leaves = leaves
        self.size = before.size + len(leaves)

    def root(self) -> bytes:
        """Return the root hash."""
        return self.range_hash(0, self.size)

    def range_hash(self, start: int, end: int) -> bytes:
        """Return the root of the tree over the leaves from `start` up to, and without, `end`."""
        if start >= self._before.size:
            tree = Tree.empty()
            tree.extend(self._leaves[start - self._before.size : end - self._before.size])
            return tree.root()
        if (peak := self._peak(start, end)) is not None:
            return peak
        middle = start + _split(end - start)
        return node_hash(self.range_hash(start, middle), self.range_hash(middle, end))

    def inclusion(self, index: int) -> list[bytes]:
        """Return the path from a leaf to the root (RFC 9162, 2.1.3.1)."""
        path: list[bytes] = []
        start, end = 0, self.size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self.range_hash(middle, end))
                end = middle
            else:
                path.append(self.range_hash(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, size: int) -> list[bytes]:
        """Return the proof that the tree extends that of an earlier size (RFC 9162, 2.1.4.1)."""
        proof: list[bytes] = []
        start, end, whole = 0, self.size, True
        while end != size:
            middle = start + _split(end - start)
            if size <= middle:
                proof.append(self.range_hash(middle, end))
                end = middle
            else:
                proof.append(self.range_hash(start, middle))
                start, whole = middle, False
        if not whole:
            proof.append(self.range_hash(start, end))
        return proof[::-1]

    def _peak(self, start: int, end: int) -> bytes | None:
        """Return the peak of the earlier tree that stands for just these leaves."""
        at = 0
        for peak, width in zip(self._before.peaks, _widths(self._before.size), strict=True):
            if (at, at + width) == (start, end):
                return peak
            at += width
        return None


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Tell whether a path proves that a leaf has this place in the tree of that size and root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, made = index, size - 1, leaf
    for other in path:
        if last == 0:
            return False
        if at & 1 or at == last:
            made = node_hash(other, made)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            made = node_hash(made, other)
        at, last = at >> 1, last >> 1
    return last == 0 and made == root


def verify_consistency(before: int, before_root: bytes, after: int, after_root: bytes, proof: Sequence[bytes]) -> bool:
    """Tell whether a proof shows that a tree extends an earlier one that is not empty (RFC 9162, 2.1.4.2)."""
    if before == after:
        return not proof and before_root == after_root
    if not 0 < before < after or not proof:
        return False
    first, *rest = [before_root, *proof] if before.bit_count() == 1 else proof
    at, last = before - 1, after - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    old = new = first
    for other in rest:
        if last == 0:
            return False
        if at & 1 or at == last:
            old, new = node_hash(other, old), node_hash(other, new)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            new = node_hash(new, other)
        at, last = at >> 1, last >> 1
    return last == 0 and old == before_root and new == after_root


def _split(width: int) -> int:
    """Return the largest power of two below a width: how many leaves stand to the left."""
    return 1 << ((width - 1).bit_length() - 1)


def _widths(size: int) -> list[int]:
    """Return the widths of the peaks of a tree, the largest first."""
    return [1 << bit for bit in reversed(range(size.bit_length())) if size >> bit & 1]
