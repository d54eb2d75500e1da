"""Messages as columns: a sequence like any other, and bytes that Arrow takes as they lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.envelope import Messages, RawMessage

RAW = st.builds(
    RawMessage,
    sequence=st.integers(1, 2**63),
    time_ns=st.integers(0, 2**62),
    subject=st.text("abc.é", max_size=10),
    payload=st.binary(max_size=30),
)


@given(st.lists(RAW, max_size=8), st.integers(-9, 9), st.integers(-9, 9))
def test_columns_hold_what_was_put_into_them(messages: list[RawMessage], start: int, stop: int) -> None:
    columns = Messages.of(messages)
    assert list(columns) == messages
    assert list(columns[start:stop]) == messages[start:stop]
    assert columns.size_bytes == sum(len(message.payload) for message in messages)
    assert Messages.of(columns) is columns
    for index in range(-len(messages), len(messages)):
        assert columns[index] == messages[index]
