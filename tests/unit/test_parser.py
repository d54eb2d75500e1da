"""The protocol's parser: however the bytes arrive, each message goes once, whole and in order, to who takes it."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from nats.protocol import parser

from bitinglip.events.parser import DirectParser

Taken = tuple[str, bytes, bytes, bytes, bytes | None]

DIRECT, BARE, OTHER = b"1", b"2", b"3"
TOKENS = st.text("abc.$_", min_size=1, max_size=20).map(str.encode)
BODIES = st.binary(max_size=50) | st.just(b"MSG a 1 3\r\nabc\r\n") | st.just(b"\r\n")
HEADERS = st.binary(max_size=20).map(lambda line: b"NATS/1.0\r\n" + line + b"\r\n\r\n")
MESSAGES = st.tuples(st.sampled_from([DIRECT, BARE, OTHER]), TOKENS, TOKENS | st.just(b""), BODIES, HEADERS | st.none())


class _Client:
    """What the parser wants of nats-py's client."""

    def __init__(self, taken: list[Taken]) -> None:
        self.taken = taken
        self.pongs = 0
        self.errors: list[str] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self.taken.append((f"client {sid}", subject, reply, data, headers))

    async def _process_pong(self) -> None:
        self.pongs += 1

    async def _process_err(self, told: str) -> None:
        self.errors.append(told)


def _frame(sid: bytes, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> bytes:
    words = [subject, sid, reply] if reply else [subject, sid]
    if headers is None:
        return b" ".join([b"MSG", *words, b"%d" % len(body)]) + b"\r\n" + body + b"\r\n"
    sizes = [b"%d" % len(headers), b"%d" % (len(headers) + len(body))]
    return b" ".join([b"HMSG", *words, *sizes]) + b"\r\n" + headers + body + b"\r\n"


def _wanted(sid: bytes, subject: bytes, reply: bytes, body: bytes, headers: bytes | None) -> Taken:
    name = f"client {int(sid)}"
    if sid == DIRECT:
        name = "direct"
    elif sid == BARE and headers is None:
        name = "bare"
    return name, subject, reply, body, headers


@given(st.lists(MESSAGES, max_size=8), st.lists(st.integers(0, 2_000), max_size=12), st.booleans())
def test_messages_reach_who_takes_them_in_order_however_the_bytes_are_cut(
    messages: list[tuple[bytes, bytes, bytes, bytes, bytes | None]], cuts: list[int], talkative: bool
) -> None:
    taken: list[Taken] = []
    client = _Client(taken)
    under_test = DirectParser(
        client,
        {DIRECT: lambda *arguments: taken.append(("direct", *arguments))},
        {BARE: lambda *arguments: taken.append(("bare", *arguments))},
        lambda *_: None,
    )
    between = b"PONG\r\n+OK\r\n" if talkative else b""
    data = b"".join(_frame(*message) + between for message in messages)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})

    async def feed() -> None:
        for start, end in pairwise(edges):
            await under_test.parse(data[start:end])

    asyncio.run(feed())
    assert taken == [_wanted(*message) for message in messages]
    assert client.pongs == (len(messages) if talkative else 0)
    assert under_test.state == parser.AWAITING_CONTROL_LINE


def test_what_came_in_part_is_forgotten_with_the_connection() -> None:
    taken: list[Taken] = []
    direct = {DIRECT: lambda *arguments: taken.append(("direct", *arguments))}
    under_test = DirectParser(_Client(taken), direct, {}, lambda *_: None)
    asyncio.run(under_test.parse(b"MSG a 1 5\r\nab"))
    under_test.reset()
    asyncio.run(under_test.parse(b"MSG b 1 2\r\nxy\r\n"))
    assert [message[1] for message in taken] == [b"b"]


@given(st.sampled_from(["Publish", "Subscription"]), TOKENS, st.integers(0, 100))
def test_what_is_not_permitted_is_told_as_it_was_asked(what: str, subject: bytes, cut: int) -> None:
    refused: list[tuple[str, str]] = []
    client = _Client([])
    under_test = DirectParser(client, {}, {}, lambda *told: refused.append(told))
    data = b"PONG\r\n-ERR 'Permissions Violation for %b to \"%b\"'\r\nPONG\r\n" % (what.encode(), subject)

    async def feed() -> None:
        await under_test.parse(data[:cut])
        await under_test.parse(data[cut:])

    asyncio.run(feed())
    assert refused == [(what.lower(), subject.decode())]
    assert (len(client.errors), client.pongs) == (1, 2)
