"""Sealing: what is sealed opens with its key, for its owner and role, unchanged; and with nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitinglip.errors import SealBroken
from bitinglip.events import sealing

KEYS = st.binary(min_size=32, max_size=32)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@given(KEYS, NAMES, NAMES, st.binary(max_size=4096))
def test_what_is_sealed_opens(key: bytes, owner: str, role: str, body: bytes) -> None:
    sealed = sealing.seal(key, owner, role, body)
    assert sealing.unseal(key, owner, role, sealed) == body
    assert sealing.seal(key, owner, role, body) != sealed


@given(KEYS, st.binary(min_size=1, max_size=200), st.data())
def test_a_changed_bit_breaks_the_seal(key: bytes, body: bytes, data: st.DataObject) -> None:
    sealed = bytearray(sealing.seal(key, "a", "params", body))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(SealBroken):
        sealing.unseal(key, "a", "params", bytes(sealed))


@given(KEYS, KEYS, NAMES, NAMES, NAMES, NAMES)
def test_another_key_owner_or_role_does_not_open_it(
    key: bytes, other: bytes, owner: str, role: str, owner_2: str, role_2: str
) -> None:
    assume((key, owner, role) != (other, owner_2, role_2))
    sealed = sealing.seal(key, owner, role, b"body")
    with pytest.raises(SealBroken):
        sealing.unseal(other, owner_2, role_2, sealed)


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"\0" * 12, b"\x02" + b"\0" * 40])
def test_what_is_no_seal_is_refused(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        sealing.unseal(sealing.new_key(), "a", "params", sealed)


@given(KEYS, KEYS, st.binary(max_size=100), st.binary(max_size=100))
def test_the_digest_of_a_request_is_the_same_for_the_same_key_and_request_alone(
    key: bytes, other: bytes, request: bytes, another: bytes
) -> None:
    assume(key != other)
    assume(request != another)
    digest = sealing.request_digest(key, request)
    assert digest == sealing.request_digest(key, request)
    assert digest not in {sealing.request_digest(other, request), sealing.request_digest(key, another)}
