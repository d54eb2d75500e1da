"""Stop texts, by property: what is found does not depend on how the text was cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.workers.engines.decoding import StopScanner

letters = st.text(alphabet="abc", max_size=30)
stops = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3)


@given(st.lists(letters, max_size=12), stops)
def test_what_is_shown_holds_no_stop_text_and_nothing_is_lost(pieces: list[str], stops: list[str]) -> None:
    scanner, shown, stopped = StopScanner(stops), "", False
    for index, piece in enumerate(pieces):
        added, stopped = scanner.push(piece, last=index == len(pieces) - 1)
        shown += added
        if stopped:
            break
    text = "".join(pieces)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert stopped == any(stop in text for stop in stops)
    if stopped:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text
