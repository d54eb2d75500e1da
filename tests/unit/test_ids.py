"""ULIDs and the ids that idempotency keys make."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.ids import RandomBits, Ulids, encode_ulid, is_ulid, task_id_for_key

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
numbers = st.integers(0, 2**128 - 1)


@given(numbers)
def test_a_ulid_is_its_number(value: int) -> None:
    text = encode_ulid(value)
    assert is_ulid(text)
    decoded = 0
    for character in text:
        decoded = decoded * 32 + ALPHABET.index(character)
    assert decoded == value


@given(numbers, numbers)
def test_the_order_of_ulids_is_that_of_their_numbers(one: int, other: int) -> None:
    assert (encode_ulid(one) < encode_ulid(other)) == (one < other)


def test_later_is_larger() -> None:
    times = iter([1000.0, 1000.001, 2000.0])
    ulids = Ulids(lambda: next(times), lambda: 7)
    made = [ulids(), ulids(), ulids()]
    assert made == sorted(made)
    assert len(set(made)) == 3


@given(st.lists(st.tuples(st.integers(0, 2**48 - 1), st.integers(0, 2**80 - 1)), max_size=8))
def test_a_ulid_is_made_of_its_time_and_its_random_number(parts: list[tuple[int, int]]) -> None:
    times, numbers = iter(parts), iter(parts)
    ulids = Ulids(lambda: (next(times)[0] + 0.5) / 1000, lambda: next(numbers)[1])
    assert [ulids() for _ in parts] == [encode_ulid((ms << 80) | number) for ms, number in parts]


@given(st.text(), st.text(), st.text(), st.text())
def test_an_idempotency_key_makes_one_id_for_its_caller(key: str, idem: str, other_key: str, other_idem: str) -> None:
    made = task_id_for_key(key, idem)
    assert is_ulid(made)
    assert made == task_id_for_key(key, idem)
    if "\0" not in key + idem + other_key + other_idem:
        assert (made == task_id_for_key(other_key, other_idem)) == ((key, idem) == (other_key, other_idem))


def test_what_is_no_ulid() -> None:
    for text in [
        "",
        "x",
        "01JZ000000000000000000000",
        "01jz0000000000000000000000",
        "8ZZZZZZZZZZZZZZZZZZZZZZZZZ",
        "a.b",
    ]:
        assert not is_ulid(text)


def test_random_bits_are_drawn_many_at_once_and_given_once_over_threads() -> None:
    bits = RandomBits()
    with ThreadPoolExecutor(4) as threads:
        drawn = [n for part in threads.map(lambda _: [bits() for _ in range(1_000)], range(8)) for n in part]
    assert len(set(drawn)) == 8_000
    assert all(0 <= number < 2**80 for number in drawn)
    assert max(drawn) > 2**79
