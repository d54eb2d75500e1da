"""nats-py's parser with a short way: messages for direct handlers are handed over as they are found.

The rest of the protocol is nats-py's as before; it is given whole frames (a line, with its payload if it has one).
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from nats.protocol.parser import Parser

DirectHandler = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes subject, reply subject, payload and raw headers; is called by the parser, and must not wait."""
RefusedHandler = Callable[[str, str], None]
"""Takes what the server does not permit (`publish` or `subscription`), and the subject."""

CRLF = b"\r\n"
ERROR = b"-ERR"
_VIOLATION = re.compile(rb"Permissions Violation for (\w+) to \"([^\"]*)\"")
STATUS = b"NATS/1.0 "
"""How the headers of the server's own messages begin: with a status."""
WORDS = {b"MSG": 5, b"HMSG": 6}
"""Words of the line that announces a message with a reply subject; without one it is a word shorter."""


class DirectParser(Parser):
    """Splits what arrives into frames, and decides by the subscription's number who gets a message.

    Args:
        client: nats-py's client, which gets all that has no direct handler.
        direct: Handlers of all messages of a subscription, by its number as it stands in the protocol.
        bare: Handlers of the messages without headers.
        refused: Hears of what the server does not permit; nats-py tells it in small letters.
    """

    def __init__(
        self,
        client: object,
        direct: Mapping[bytes, DirectHandler],
        bare: Mapping[bytes, DirectHandler],
        refused: RefusedHandler,
    ) -> None:
        super().__init__(client)
        self._direct = direct
        self._bare = bare
        self._refused = refused

    def reset(self) -> None:
        """Forget what has arrived in part: the connection is a new one."""
        super().reset()
        self._parts: list[bytes] = []
        self._missing = 0

    async def parse(self, data: bytes = b"") -> None:
        """Take what the connection has read: the end of one frame, whole ones, the beginning of another."""
        if self._parts:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            data = b"".join(self._parts)
            self._parts = []
        position = 0
        while position < len(data):
            end = self._hand_over(data, position)
            if end > len(data):
                self._parts, self._missing = [data[position:]], end - len(data)
                return
            if end < 0:
                self._look_for_refusal(data, position, -end)
                await super().parse(data[position:-end])
            position = abs(end)

    def _look_for_refusal(self, data: bytes, start: int, end: int) -> None:
        if data.startswith(ERROR, start) and (found := _VIOLATION.search(data, start, end)) is not None:
            self._refused(found[1].decode().lower(), found[2].decode())

    def _hand_over(self, data: bytes, start: int) -> int:
        """Return where the frame ends, negative if it was not handed over; beyond the data if it is not all there."""
        line_end = data.find(CRLF, start)
        if line_end < 0:
            return len(data) + 1
        words = data[start:line_end].split()
        most = WORDS.get(words[0].upper()) if words else None
        if most is None:
            return -(line_end + len(CRLF))
        begin = line_end + len(CRLF)
        end = begin + int(words[-1])
        if end + len(CRLF) > len(data):
            return end + len(CRLF)
        sid = words[2]
        handler = self._direct.get(sid) or (self._bare.get(sid) if most == WORDS[b"MSG"] else None)
        if handler is None:
            return -(end + len(CRLF))
        reply = words[3] if len(words) == most else b""
        if most == WORDS[b"MSG"]:
            handler(words[1], reply, data[begin:end], None)
        else:
            body = begin + int(words[-2])
            handler(words[1], reply, data[body:end], data[begin:body])
        return end + len(CRLF)
