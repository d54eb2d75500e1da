"""Whether a stream has the events that were signed: its heads and its events, each in their order, side by side.

Pure: whoever reads them hands them in. The first thing that is wrong is raised, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bitinglip.events.envelope import RawMessage
from bitinglip.events.heads import Leaf, head_message, leaf_of, leaves_in
from bitinglip.events.ledger import LedgerSigned
from bitinglip.events.merkle import Tree
from bitinglip.events.signing import PublicKey

What = Literal["changed", "dropped", "inserted", "out_of_order", "bad_head", "unknown_key", "not_extended"]
WORDS: Mapping[What, str] = {
    "changed": "is not what was signed",
    "dropped": "was signed and is not there",
    "inserted": "was not there when the log was signed",
    "out_of_order": "does not stand in its place",
    "bad_head": "is no head of this log",
    "unknown_key": "is signed with a key that is not known",
    "not_extended": "is not what was signed when the heads were kept",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """The first thing that is wrong with a stream."""

    what: What
    stream: str
    """Stream of the event; LEDGER for a head."""
    sequence: int
    subject: str | None = None
    """Subject of the event, as it is now; none for one that is not there."""
    detail: str = ""

    def __str__(self) -> str:
        """Say it in a sentence."""
        about = f" ({self.subject})" if self.subject else ""
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.stream}:{self.sequence}{about} {WORDS[self.what]}{detail}"

    def document(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"problem": str(self)}


class NotAsSignedError(Exception):
    """Something is not as it was signed."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


class Keyring:
    """The keys whose signatures count: those that are given, or else the first one that is seen."""

    def __init__(self, given: Mapping[str, PublicKey], first: PublicKey | None = None) -> None:
        """`first`: the key that signed the log's first head, by what the log itself says."""
        self.first = None if given else first
        """Key that is trusted only because it was the first; none if keys were given."""
        self._known = given or ({} if first is None else {first.id: first})
        self.used: set[str] = set()
        """Ids of the keys that have signed what was checked."""

    def find(self, key_id: str) -> PublicKey | None:
        """Return a key whose signatures count, by its id; none for any other."""
        found = self._known.get(key_id)
        if found is not None:
            self.used.add(key_id)
        return found


class StreamCheck:
    """One stream's events against its heads: a head, the events up to its last one, the next head, and so on."""

    def __init__(
        self, stream: str, keys: Keyring, kept: Mapping[int, str] | None = None, ends_at: int | None = None
    ) -> None:
        """`kept`: roots that somebody has kept, by the size of the tree; `ends_at`: no event after it will come."""
        self.stream = stream
        self.tree = Tree.empty()
        self.heads = self.events = self.uncovered = 0
        """Heads and events that are as they were signed; events that no head covers yet."""
        self.covered = 0
        """Sequence up to which the heads so far go."""
        self.beyond = 0
        """Events of the heads that are after what will come."""
        self._ends_at = ends_at
        self._keys = keys
        self._kept = dict(kept or {})
        self._expected: list[Leaf] = []
        """What the present head says, the last one first."""
        self._last = 0

    def head(self, sequence: int, signed: LedgerSigned) -> None:
        """Take the next head, by its sequence in LEDGER; all of the one before must have been seen.

        Raises:
            NotAsSignedError: an event of the head before is not there, or it is a bad head.
        """
        self._end_of_head()
        self._check_signature(sequence, signed)
        try:
            added = list(leaves_in(signed))
        except ValueError as error:
            raise self._bad_head(sequence, str(error)) from error
        self._check_order(sequence, signed)
        for leaf in added:
            self.tree.add(leaf.hash)
            self._check_kept(leaf.sequence)
        self._check_tree(sequence, signed)
        self.heads += 1
        self.covered = signed.sequences[-1]
        self._expected = added[::-1]

    def event(self, message: RawMessage) -> None:
        """Take the next event; those of the present head, and after the last head all others.

        Raises:
            NotAsSignedError: it is not what was signed, or one before it is not there.
        """
        leaf = leaf_of(self.stream, message)
        if message.sequence <= self._last:
            raise self._wrong("out_of_order", message.sequence, message.subject)
        self._last = message.sequence
        if self._expected and self._expected[-1].sequence < message.sequence:
            raise self._wrong("dropped", self._expected[-1].sequence)
        if leaf is not None and message.sequence > self.covered:
            self.uncovered += 1
        elif self._expected and self._expected[-1].sequence == message.sequence:
            if leaf != self._expected.pop():
                raise self._wrong("changed", message.sequence, message.subject)
            self.events += 1
        elif leaf is not None:
            raise self._wrong("inserted", message.sequence, message.subject)

    def end(self) -> None:
        """Take it that there is nothing more.

        Raises:
            NotAsSignedError: there should be.
        """
        self._end_of_head()
        for size in sorted(self._kept):
            detail = f"the kept head has {size} events, and the log's heads {self.tree.size}"
            raise self._wrong("not_extended", self.covered, detail=detail)

    def _end_of_head(self) -> None:
        if self._expected and not (self._ends_at is not None and self._expected[-1].sequence > self._ends_at):
            raise self._wrong("dropped", self._expected[-1].sequence)
        self.beyond += len(self._expected)

    def _check_signature(self, sequence: int, signed: LedgerSigned) -> None:
        key = self._keys.find(signed.key_id)
        if key is None:
            raise NotAsSignedError(Finding("unknown_key", "LEDGER", sequence, None, f"key {signed.key_id}"))
        last = signed.sequences[-1] if signed.sequences else 0
        try:
            message = head_message(self.stream, signed.tree_size, bytes.fromhex(signed.root_hash), last)
        except (ValueError, OverflowError) as error:
            raise self._bad_head(sequence, str(error)) from error
        if not key.signed(message, signed.signature):
            raise self._bad_head(sequence, "its signature is not that of its key")

    def _check_order(self, sequence: int, signed: LedgerSigned) -> None:
        before = self.covered
        for each in signed.sequences:
            if each <= before:
                raise self._bad_head(sequence, f"it signs {self.stream}:{each} after {before}")
            before = each
        if signed.stream != self.stream or not signed.sequences:
            raise self._bad_head(sequence, f"it signs nothing of {self.stream}")

    def _check_tree(self, sequence: int, signed: LedgerSigned) -> None:
        if signed.tree_size != self.tree.size:
            detail = f"its tree has {signed.tree_size} events, and {self.tree.size} were signed up to it"
            raise self._bad_head(sequence, detail)
        if signed.root_hash != self.tree.root().hex():
            raise self._bad_head(sequence, "its root is not that of its leaves and those before")
        if signed.peaks != [peak.hex() for peak in self.tree.peaks]:
            raise self._bad_head(sequence, "its peaks are not those of its tree")

    def _check_kept(self, sequence: int) -> None:
        if self.tree.size in self._kept and self._kept.pop(self.tree.size) != self.tree.root().hex():
            raise self._wrong("not_extended", sequence, detail="that event, or one before it")

    def _wrong(self, what: What, sequence: int, subject: str | None = None, detail: str = "") -> NotAsSignedError:
        return NotAsSignedError(Finding(what, self.stream, sequence, subject, detail))

    def _bad_head(self, sequence: int, detail: str) -> NotAsSignedError:
        return NotAsSignedError(Finding("bad_head", "LEDGER", sequence, f"bl.ledger.{self.stream}.signed", detail))
