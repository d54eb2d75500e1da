"""Tokens for the files of a revision: good for it alone, for a while, and with the secret alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.models.sharetoken import is_good, token_for

SECRET = b"s" * 32
NAME, REVISION = "org/name", "1" * 40
TOKEN = token_for(SECRET, NAME, REVISION, 1000)


def test_a_token_is_good_until_its_time() -> None:
    assert is_good(TOKEN, SECRET, NAME, REVISION, 999.9)
    assert not is_good(TOKEN, SECRET, NAME, REVISION, 1000)


def test_a_token_is_good_for_its_revision_and_secret_alone() -> None:
    assert not is_good(TOKEN, SECRET, "org/other", REVISION, 0)
    assert not is_good(TOKEN, SECRET, NAME, "2" * 40, 0)
    assert not is_good(TOKEN, b"t" * 32, NAME, REVISION, 0)
    later = f"2000.{TOKEN.partition('.')[2]}"
    assert not is_good(later, SECRET, NAME, REVISION, 0)


@given(st.text() | st.from_regex(r"[0-9]{0,20}\.[0-9a-f]{64}"))
def test_no_other_text_is_a_token(text: str) -> None:
    assert not is_good(text, SECRET, NAME, REVISION, 0)
