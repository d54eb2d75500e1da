"""What `bitinglip audit verify` reads, and how it tells what it found."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path

from bitinglip.cli import render
from bitinglip.errors import ProofUnusable
from bitinglip.events.archivefolder import ArchiveFolder
from bitinglip.events.auditing import Head, Live, Outcome, Source, audit, first_key
from bitinglip.events.checking import Keyring
from bitinglip.events.envelope import RawMessage
from bitinglip.events.heads import AUDITED
from bitinglip.events.kept import Kept
from bitinglip.events.log import EventLog
from bitinglip.events.proofs import Proof
from bitinglip.events.signing import PublicKey


@dataclass(frozen=True)
class Request:
    """What is to be checked, and by what."""

    archive: Path | None
    heads: Path | None
    keys: tuple[Path, ...]

    def kept(self) -> Kept | None:
        """Read the heads that were kept.

        Raises:
            ProofUnusable: the file has none.
        """
        return None if self.heads is None else Kept.read(self.heads)

    def folder(self) -> ArchiveFolder | None:
        """Look at the archive's files.

        Raises:
            ProofUnusable: there are none, or not all that its index lists.
        """
        if self.archive is None:
            return None
        folder = ArchiveFolder(self.archive)
        if not folder.streams:
            raise ProofUnusable(problem=f"{self.archive} is no archive, nor a copy of one")
        return folder

    def given(self, kept: Kept | None) -> dict[str, PublicKey]:
        """Return the keys whose signatures count: those of the options, and those that were kept with heads.

        Raises:
            KeyUnusable: a file has none.
        """
        named = [PublicKey.read(path) for path in self.keys]
        return {key.id: key for key in named} | (kept.keys if kept else {})


class Files:
    """An archive, and heads that were kept with their leaves."""

    def __init__(self, archive: ArchiveFolder, kept: Kept) -> None:
        self._archive = archive
        self._kept = kept

    def heads(self, stream: str) -> AsyncGenerator[Head, None]:
        """Yield a stream's heads."""
        return self._kept.heads(stream)

    def events(self, stream: str) -> AsyncGenerator[Seq[RawMessage], None]:
        """Yield a stream's events."""
        return self._archive.events(stream)


class ArchiveThenLive:
    """An archive, and from where it ends on the server."""

    def __init__(self, archive: ArchiveFolder, live: Live) -> None:
        self._archive = archive
        self._live = live

    def heads(self, stream: str) -> AsyncGenerator[Head, None]:
        """Yield a stream's heads, which never leave the server."""
        return self._live.heads(stream)

    async def events(self, stream: str) -> AsyncGenerator[Seq[RawMessage], None]:
        """Yield a stream's events."""
        last = 0
        async for batch in self._archive.events(stream):
            last = batch[-1].sequence
            yield batch
        async for batch in self._live.events(stream, last):
            yield batch


async def verified(request: Request, log: EventLog | None, *, as_json: bool) -> bool:
    """Check a log, on its server or from files alone, and tell what was found; true if all is as it was signed.

    Raises:
        NoServer: the server does not answer.
        KeyUnusable, ProofUnusable: a file is none that it should be.
    """
    kept = request.kept()
    given = request.given(kept)
    folder = request.folder()
    source = _source(folder, log, kept)
    ring = Keyring(given, None if log is None else await first_key(log))
    streams, ends = (AUDITED, None) if log is not None or folder is None else (folder.streams, folder.ends)
    found: list[Outcome] = []
    async for outcome in audit(source, ring, kept.roots if kept else None, streams, ends):
        found.append(outcome)
        _tell(outcome, as_json=as_json)
    if not as_json:
        _tell_rest(ring, found)
    return all(outcome.finding is None for outcome in found)


def check_proof(path: Path, request: Request, *, as_json: bool) -> bool:
    """Check a proof, and tell what was found; true if it holds.

    Raises:
        KeyUnusable, ProofUnusable: a file is none that it should be.
    """
    try:
        proof = Proof.read(path.read_bytes())
    except OSError as error:
        raise ProofUnusable(problem=str(error)) from error
    given = request.given(request.kept())
    told = {key.id: key for text in proof.keys.values() if (key := PublicKey.of_base64(text)) is not None}
    fault = proof.first_fault(given or told)
    if as_json:
        render.json({"about": proof.about, "events": len(proof.events), "uncovered": proof.uncovered, "problem": fault})
    elif fault is not None:
        render.line(f"not proved: {fault}")
    else:
        signers = ", ".join(sorted({head.key_id for head in proof.heads})) or "none"
        render.line(f"{len(proof.events)} events about {proof.about} are in the signed log (keys: {signers})")
        for event in proof.events:
            render.line(f"  {proof.stream}:{event.sequence} {event.subject}")
        if not given:
            render.note("No --key was given: the proof's own keys were taken.")
    return fault is None and bool(proof.events)


def _source(folder: ArchiveFolder | None, log: EventLog | None, kept: Kept | None) -> Source:
    if log is None:
        assert folder is not None
        assert kept is not None
        return Files(folder, kept)
    return Live(log) if folder is None else ArchiveThenLive(folder, Live(log))


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        render.json(outcome.document())
    elif outcome.finding is not None:
        render.line(f"{outcome.stream}: {outcome.finding}")
    elif outcome.events or outcome.uncovered:
        render.line(
            f"{outcome.stream}: {outcome.events} events are as they were signed, in {outcome.heads} heads "
            f"({outcome.events_per_s:,.0f} events/s)"
        )
    if outcome.uncovered and not as_json and outcome.finding is None:
        after = f"after {outcome.stream}:{outcome.covered_sequence} " if outcome.covered_sequence else ""
        render.line(f"{outcome.stream}: {outcome.uncovered} events {after}are not covered by a head yet")
    if outcome.beyond and not as_json and outcome.finding is None:
        render.line(f"{outcome.stream}: {outcome.beyond} signed events are not checked: the archive ends before them")


def _tell_rest(ring: Keyring, found: list[Outcome]) -> None:
    if not any(outcome.heads for outcome in found):
        render.note("No head was checked: nothing is proved.")
    if ring.used:
        render.note(f"Signed with: {', '.join(sorted(ring.used))}")
    if ring.first is not None:
        render.note(f"No --key was given: {ring.first.id}, the first that was seen, was trusted.")
    missing = sorted(set(AUDITED) - {outcome.stream for outcome in found})
    if missing:
        render.note(f"Not in the folder, and not checked: {', '.join(missing)}")
