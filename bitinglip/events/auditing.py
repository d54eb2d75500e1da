"""The audit of a log: each stream is read and checked, in bounded memory, up to its end or its first fault."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from bitinglip.errors import CorruptEvent, NoServer
from bitinglip.events import subjects
from bitinglip.events.archive import trimmed_to
from bitinglip.events.archivefolder import archived
from bitinglip.events.checking import Finding, Keyring, NotAsSignedError, StreamCheck
from bitinglip.events.direct import get_first_after
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.heads import AUDITED
from bitinglip.events.ledger import LedgerKeyAdded, LedgerSigned
from bitinglip.events.log import EventLog
from bitinglip.events.reading import end_of, read_between
from bitinglip.events.signing import PublicKey
from bitinglip.events.streams import LEDGER


class Head(NamedTuple):
    """A signed head, and where it stands in LEDGER."""

    sequence: int
    signed: LedgerSigned


class Source(Protocol):
    """Where heads and events are read from."""

    def heads(self, stream: str) -> AsyncGenerator[Head, None]:
        """Yield a stream's heads, the first one first."""
        ...

    def events(self, stream: str) -> AsyncGenerator[Seq[RawMessage], None]:
        """Yield a stream's events, the first one first."""
        ...


class Live:
    """The log on its server, archive included."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def heads(self, stream: str) -> AsyncGenerator[Head, None]:
        """Yield the heads that are there by now.

        Raises:
            NoServer: the server does not answer.
            NotAsSignedError: one cannot be read.
        """
        filters = (subjects.ledger_subject(stream, "signed"),)
        end = await end_of(self._log, LEDGER, filters)
        async with aclosing(read_between(self._log, LEDGER, 0, end, 8, filters)) as batches:
            async for batch in batches:
                for message in batch:
                    yield head_in(message)

    async def events(self, stream: str, after: int = 0) -> AsyncGenerator[Seq[RawMessage], None]:
        """Yield the events after a sequence that are there by now; what may have left the stream, from the archive.

        Raises:
            NoServer: the server does not answer, or events left it while they were read.
            ArchiveDamaged, ProofUnusable: a file of the archive is not what it should be.
        """
        while (gone := await trimmed_to(self._log.connection, stream)) > after:
            async with aclosing(archived(self._log.connection, stream, after, gone)) as batches:
                async for batch in batches:
                    yield batch
            after = gone
        end = await end_of(self._log, stream)
        async with aclosing(read_between(self._log, stream, after, end)) as batches:
            async for batch in batches:
                yield batch
        if await trimmed_to(self._log.connection, stream) > after:
            raise NoServer(problem=f"events of {stream} left the server while they were read; try again")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the audit of one stream has come to."""

    stream: str
    events: int
    """Events that are as they were signed."""
    heads: int
    covered_sequence: int
    """Sequence of the last event that a head covers."""
    uncovered: int
    """Events after that."""
    beyond: int
    """Signed events after those that the source has."""
    seconds: float
    finding: Finding | None

    @property
    def events_per_s(self) -> float:
        """Events that were checked a second."""
        return (self.events + self.uncovered) / max(self.seconds, 1e-9)

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        finding = None if self.finding is None else self.finding.document()
        return asdict(self) | {"finding": finding, "events_per_s": round(self.events_per_s)}


async def audit(
    source: Source,
    keys: Keyring,
    kept: Mapping[str, Mapping[int, str]] | None = None,
    streams: Seq[str] = AUDITED,
    ends: Mapping[str, int] | None = None,
) -> AsyncIterator[Outcome]:
    """Check one stream after the other.

    `kept`: roots that somebody has kept, by stream and size of the tree. `ends`: up to which sequence the source has
    the streams that it has not to their ends.

    Raises:
        NoServer: the server does not answer.
    """
    for stream in streams:
        check = StreamCheck(stream, keys, (kept or {}).get(stream), (ends or {}).get(stream))
        started = time.perf_counter()
        finding = await _checked(source, check)
        seconds = time.perf_counter() - started
        yield Outcome(stream, check.events, check.heads, check.covered, check.uncovered, check.beyond, seconds, finding)


async def _checked(source: Source, check: StreamCheck) -> Finding | None:
    try:
        async with aclosing(source.heads(check.stream)) as heads, aclosing(source.events(check.stream)) as batches:
            await _compare(check, heads, batches)
    except NotAsSignedError as error:
        return error.finding
    return None


async def _compare(
    check: StreamCheck, heads: AsyncGenerator[Head, None], batches: AsyncGenerator[Seq[RawMessage], None]
) -> None:
    more = await _next_head(check, heads)
    async for batch in batches:
        for message in batch:
            while more and message.sequence > check.covered:
                more = await _next_head(check, heads)
            check.event(message)
    while more:
        more = await _next_head(check, heads)
    check.end()


async def _next_head(check: StreamCheck, heads: AsyncGenerator[Head, None]) -> bool:
    head = await anext(heads, None)
    if head is not None:
        check.head(head.sequence, head.signed)
    return head is not None


async def keys_told(log: EventLog) -> dict[str, PublicKey]:
    """Return the keys that the log says are used to sign it, by their ids.

    Raises:
        NoServer: the server does not answer.
    """
    told = [recorded.event for recorded in await log.read_latest(LEDGER, subjects.ledger_subject("*", "key_added"))]
    keys = [PublicKey.of_base64(event.public_key) for event in told if isinstance(event, LedgerKeyAdded)]
    return {key.id: key for key in keys if key is not None}


async def first_key(log: EventLog) -> PublicKey | None:
    """Return the key that signed the log's first head, as the log has it; none if it does not say.

    Raises:
        NoServer: the server does not answer.
    """
    first = await get_first_after(log.connection, LEDGER, subjects.ledger_subject("*", "signed"), 0)
    try:
        return None if first is None else (await keys_told(log)).get(head_in(first).signed.key_id)
    except NotAsSignedError:
        return None


def head_in(message: RawMessage) -> Head:
    """Return the head that a message of LEDGER is.

    Raises:
        NotAsSignedError: it is none.
    """
    try:
        event = decode(message, LEDGER).event
    except CorruptEvent as error:
        raise NotAsSignedError(Finding("bad_head", LEDGER, message.sequence, message.subject, error.problem)) from error
    if not isinstance(event, LedgerSigned):
        raise NotAsSignedError(Finding("bad_head", LEDGER, message.sequence, message.subject, "it is no signed head"))
    return Head(message.sequence, event)
