"""The Merkle tree against its recursive definition in RFC 9162, 2.1.1, 2.1.3 and 2.1.4, written down once more."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.merkle import (
    EMPTY,
    Grown,
    Tree,
    event_leaf,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

entries = st.lists(st.binary(max_size=4), max_size=70)
SIZES = st.integers(1, 300)


def k_of(n: int) -> int:
    """Return the largest power of two below n."""
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def mth(d: list[bytes]) -> bytes:
    if not d:
        return hashlib.sha256(b"").digest()
    if len(d) == 1:
        return hashlib.sha256(b"\x00" + d[0]).digest()
    k = k_of(len(d))
    return hashlib.sha256(b"\x01" + mth(d[:k]) + mth(d[k:])).digest()


def path_of(m: int, d: list[bytes]) -> list[bytes]:
    if len(d) == 1:
        return []
    k = k_of(len(d))
    return [*path_of(m, d[:k]), mth(d[k:])] if m < k else [*path_of(m - k, d[k:]), mth(d[:k])]


def subproof(m: int, d: list[bytes], whole: bool) -> list[bytes]:
    if m == len(d):
        return [] if whole else [mth(d)]
    k = k_of(len(d))
    if m <= k:
        return [*subproof(m, d[:k], whole), mth(d[k:])]
    return [*subproof(m - k, d[k:], whole=False), mth(d[:k])]


def tree_of(d: list[bytes]) -> Tree:
    tree = Tree.empty()
    tree.extend(map(leaf_hash, d))
    return tree


def grown_of(d: list[bytes], known: int) -> Grown:
    """Return the tree with its last leaves known, and the peaks of what is before them."""
    return Grown(tree_of(d[: len(d) - known]), list(map(leaf_hash, d[len(d) - known :])))


def numbered(size: int) -> list[bytes]:
    return [bytes([n & 0xFF, n >> 8]) for n in range(size)]


@given(entries)
def test_the_root_is_that_of_the_definition(d: list[bytes]) -> None:
    tree = tree_of(d)
    assert (tree.root(), tree.is_sound()) == (mth(d), True)


@given(SIZES, st.data())
def test_a_path_is_that_of_the_definition_whichever_leaves_are_known(size: int, data: st.DataObject) -> None:
    d = numbered(size)
    index = data.draw(st.integers(0, size - 1))
    known = data.draw(st.integers(size - index, size))
    grown = grown_of(d, known)
    assert (grown.root(), grown.inclusion(index)) == (mth(d), path_of(index, d))


@given(SIZES, st.data())
def test_a_consistency_proof_is_that_of_the_definition(size: int, data: st.DataObject) -> None:
    d = numbered(size)
    before = data.draw(st.integers(1, size))
    proof = grown_of(d, size).consistency(before)
    assert proof == subproof(before, d, whole=True)
    assert verify_consistency(before, mth(d[:before]), size, mth(d), proof)


@given(SIZES, st.data())
def test_only_the_right_leaf_at_its_place_is_proved(size: int, data: st.DataObject) -> None:
    d = numbered(size)
    index, other = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    path, root, leaf = path_of(index, d), mth(d), leaf_hash(d[index])
    assert verify_inclusion(leaf, index, size, path, root)
    assert verify_inclusion(leaf, other, size, path, root) == (other == index)
    assert not verify_inclusion(leaf_hash(b"another"), index, size, path, root)
    assert not verify_inclusion(leaf, index, size, [*path, root], root)
    assert not verify_inclusion(leaf, index, size, path[:-1], root) or not path
    assert not verify_inclusion(leaf, size, size, path, root)


@given(SIZES, st.data())
def test_no_proof_shows_that_a_tree_extends_another_one(size: int, data: st.DataObject) -> None:
    d = numbered(size)
    before = data.draw(st.integers(1, size))
    proof = subproof(before, d, whole=True)
    rewritten = mth([b"rewritten", *d[1:before]])
    assert not verify_consistency(before, rewritten, size, mth(d), proof)
    assert not verify_consistency(before, mth(d[:before]), size, leaf_hash(b"another"), proof)
    assert not verify_consistency(before, mth(d[:before]), size, mth(d), [*proof, EMPTY])
    assert not verify_consistency(size + 1, mth(d), size, mth(d), proof)
    assert not verify_consistency(0, EMPTY, size, mth(d), proof)


def test_the_shapes_of_the_examples() -> None:
    """RFC 9162, 2.1.5: a tree of seven leaves, and what grew to it from three, four and six."""
    d = [bytes([n]) for n in range(7)]
    a, b, c, e, f, j = [leaf_hash(each) for each in d[:6]]
    g, h, i = node_hash(a, b), node_hash(c, e), node_hash(f, j)
    k, l_ = node_hash(g, h), node_hash(i, leaf_hash(d[6]))
    last = leaf_hash(d[6])
    assert tree_of(d).root() == node_hash(k, l_)
    grown = grown_of(d, 7)
    assert grown.inclusion(0) == [b, h, l_]
    assert grown.inclusion(3) == [c, g, l_]
    assert grown.inclusion(4) == [j, last, k]
    assert grown.inclusion(6) == [i, k]
    assert grown.consistency(3) == [c, e, g, l_]
    assert grown.consistency(4) == [l_]
    assert grown.consistency(6) == [i, last, k]


@pytest.mark.parametrize(
    ("size", "root"),
    [
        (0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        (1, "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ],
)
def test_known_roots(size: int, root: str) -> None:
    """The root of nothing, and that of one empty leaf."""
    assert tree_of([b""] * size).root().hex() == root


def test_each_part_of_an_event_makes_its_leaf() -> None:
    told = ("TASKS", 7, 1_700_000_000_000_000_001, "bl.task.t.queued", b"{}")
    changed = [("TASK", "S"), (8,), (1_700_000_000_000_000_002,), ("bl.task.t.queue",), (b"{ }",)]
    leaves = {event_leaf(*told)}
    for at, (value, *_) in enumerate(changed):
        leaves.add(event_leaf(*told[:at], value, *told[at + 1 :]))  # type: ignore[arg-type]
    leaves.add(event_leaf(*told[:3], "bl.task.t.queued{", b"}"))
    assert len(leaves) == 7
    stream, sequence, time_ns, subject, payload = told
    entry = (
        stream.encode() + b"\x00" + sequence.to_bytes(8, "big") + time_ns.to_bytes(8, "big")
        + len(subject).to_bytes(4, "big") + subject.encode() + payload
    )  # fmt: skip
    assert event_leaf(*told) == hashlib.sha256(b"\x00" + entry).digest()
