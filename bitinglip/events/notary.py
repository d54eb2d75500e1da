"""The notary: signs the heads of the streams' Merkle trees, now and then. A part of each gateway.

What it signs goes into stream LEDGER with the expected sequence of the head before: so one wins, whoever it is, and
goes on where the last head ends. Who loses leaves it to the other for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from contextlib import aclosing, suppress

from bitinglip.errors import BitingLipError, Conflict
from bitinglip.events import subjects
from bitinglip.events.ending import end
from bitinglip.events.heads import AUDITED, LEAVES_MOST, Leaf, head_of, leaf_of, tree_of
from bitinglip.events.ledger import LedgerKeyAdded, LedgerSigned
from bitinglip.events.log import EventLog
from bitinglip.events.merkle import Tree
from bitinglip.events.reading import end_of, read_between
from bitinglip.events.signing import SigningKey
from bitinglip.events.streams import LEDGER
from bitinglip.settings import Audit

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Seconds between two looks at how far a stream has come."""
SETTLED_S = 2.0
"""Age at which an event is signed: what a server has only just taken, it may still lose."""
READ_AT_ONCE = 250
"""Events that are read before others get their turn."""


class Notary:
    """Signs what is new in the log's streams."""

    def __init__(self, event_log: EventLog, settings: Audit, key: SigningKey, settled_s: float = SETTLED_S) -> None:
        self._log = event_log
        self._key = key
        self._settings = settings
        self._books = [Book(event_log, stream, settings, key, settled_s) for stream in AUDITED]
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="notary")

    async def close(self) -> None:
        """End; what is not signed yet is signed by whoever comes next."""
        await end(lambda: [self._task])

    async def _run(self) -> None:
        introduced = False
        while True:
            introduced = introduced or await self._tried(introduce(self._log, self._key))
            for book in self._books if introduced else ():
                await self._tried(book.look())
            await asyncio.sleep(min(LOOK_S, self._settings.every_s))

    async def _tried(self, work: Awaitable[None]) -> bool:
        try:
            await work
        except (BitingLipError, OSError) as error:
            log.debug("nothing was signed: %s", error)
        except ValueError as error:
            log.warning("the last signed head is none to go on from: %s", error)
        else:
            return True
        return False


async def introduce(event_log: EventLog, key: SigningKey) -> None:
    """Write a public key into the log, if it is not there.

    Raises:
        NoServer: the server does not answer.
    """
    public = key.public
    added = LedgerKeyAdded(key_id=public.id, public_key=public.base64)
    with suppress(Conflict):
        await event_log.append(event_log.ledger_append(added, public.id, 0))


class Book:
    """How far one stream is signed, and what waits for it."""

    def __init__(
        self, event_log: EventLog, stream: str, settings: Audit, key: SigningKey, settled_s: float = SETTLED_S
    ) -> None:
        self._log = event_log
        self._stream = stream
        self._settled_s = settled_s
        self._settings = settings
        self._key = key
        self._tree = Tree.empty()
        self._head = 0
        """Sequence, in LEDGER, of the last head."""
        self._read = 0
        """Sequence up to which the stream is read."""
        self._waiting: list[Leaf] = []
        self._opened = False
        self._signed_at = 0.0
        self._idle_until = 0.0

    async def look(self) -> None:
        """Sign what is to be signed by now.

        Raises:
            NoServer: the server does not answer.
            ValueError: the last head is none to go on from.
        """
        if time.monotonic() < self._idle_until:
            return
        try:
            if self._opened or await self._open():
                await self._sign_what_is_due(time.monotonic())
        except (BitingLipError, OSError):
            self._opened = False  # what waits may have a gap: it is read again
            raise

    async def _sign_what_is_due(self, now: float) -> None:
        end = await end_of(self._log, self._stream)
        due = now - self._signed_at >= self._settings.every_s
        if end - self._read >= self._settings.every_events or (due and (end > self._read or self._waiting)):
            await self._sign_up_to(end, all_of_it=due)
        if due:
            self._signed_at = now

    async def _sign_up_to(self, end: int, *, all_of_it: bool) -> None:
        settled_ns = int((self._log.clock().timestamp() - self._settled_s) * 1e9)
        async with aclosing(read_between(self._log, self._stream, self._read, end, READ_AT_ONCE)) as batches:
            async for batch in batches:
                for message in batch:
                    if message.time_ns > settled_ns:
                        end = self._read
                        break
                    self._take(leaf_of(self._stream, message), message.sequence)
                await self._sign(self._settings.every_events)
                if end <= self._read or not self._opened:
                    break
        if all_of_it:
            await self._sign(1)

    def _take(self, leaf: Leaf | None, sequence: int) -> None:
        self._read = sequence
        if leaf is not None:
            self._waiting.append(leaf)

    async def _sign(self, least: int) -> None:
        """Sign what waits, as long as it is so much."""
        while self._opened and len(self._waiting) >= least:
            signed, tree = head_of(self._stream, self._tree, self._waiting[:LEAVES_MOST], self._key)
            try:
                self._head = await self._log.append(self._log.ledger_append(signed, self._stream, self._head))
            except Conflict:
                self._leave()
                return
            self._tree = tree
            del self._waiting[: len(signed.sequences)]

    def _leave(self) -> None:
        """Leave it to another gateway's notary for a while."""
        self._opened = False
        self._idle_until = time.monotonic() + 2 * self._settings.every_s

    async def _open(self) -> bool:
        """Go on after the last head; false if another notary has been at work since we left it to that one."""
        last = await self._log.read_last(LEDGER, subjects.ledger_subject(self._stream, "signed"))
        before, self._head = self._head, 0 if last is None else last.sequence
        if self._idle_until and self._head != before:
            self._leave()
            return False
        signed = last.event if last is not None and isinstance(last.event, LedgerSigned) else None
        self._tree = tree_of(signed)
        self._read = signed.sequences[-1] if signed is not None and signed.sequences else 0
        self._waiting, self._opened = [], True
        return True
