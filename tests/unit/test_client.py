"""What is published, as it goes over the wire: the same bytes as nats-py's own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import NATS_HDR_LINE
from nats.errors import BadHeaderError
from nats.protocol.command import hpub_cmd, pub_cmd

from bitinglip.events.client import frame

SUBJECTS = st.text("abcäß.=~", min_size=1, max_size=30)
REPLIES = SUBJECTS | st.just("")
NAMES = st.text("abcABC-", min_size=1, max_size=20)
VALUES = st.text("abc: ,ä0", max_size=20).map(str.strip)


@given(SUBJECTS, st.binary(max_size=200), st.dictionaries(NAMES, VALUES, max_size=4), REPLIES)
def test_a_frame_is_what_nats_py_would_send(subject: str, payload: bytes, headers: dict[str, str], reply: str) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    told = NATS_HDR_LINE + b"\r\n" + lines + b"\r\n"
    theirs = hpub_cmd(subject, reply, told, payload) if headers else pub_cmd(subject, reply, payload)
    assert frame(subject, payload, headers, reply) == theirs


@pytest.mark.parametrize("value", ["a\r\nOther: b", "a\nb", "a\rb", "\r\n"])
@pytest.mark.parametrize("where", ["name", "value"])
def test_no_header_can_be_several(value: str, where: str) -> None:
    headers = {value: "x"} if where == "name" else {"X": value}
    with pytest.raises(BadHeaderError):
        frame("a", b"", headers, "")
