"""Heads and keys in a file that somebody else keeps, JSON lines: what today's log is held against another day."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
from pydantic import ValidationError

from bitinglip.errors import ProofUnusable
from bitinglip.events.auditing import Head, Live
from bitinglip.events.heads import AUDITED
from bitinglip.events.ledger import LedgerSigned
from bitinglip.events.proofs import ProofHead
from bitinglip.events.signing import PublicKey

FORMAT = 1


@dataclass(frozen=True)
class Kept:
    """What is in such a file."""

    path: Path
    keys: dict[str, PublicKey] = field(default_factory=dict[str, PublicKey])
    roots: dict[str, dict[int, str]] = field(default_factory=dict[str, dict[int, str]])
    """Root of each head, by stream and size of the tree."""
    whole: bool = True
    """Whether all heads have their leaves."""

    @classmethod
    def read(cls, path: Path) -> Kept:
        """Read a file.

        Raises:
            ProofUnusable: it is none of these.
        """
        keys: dict[str, PublicKey] = {}
        roots: dict[str, dict[int, str]] = {stream: {} for stream in AUDITED}
        whole = True
        for line in _lines(path):
            if (told := line.get("key")) is not None and (key := PublicKey.of_base64(told["public_key"])):
                keys[key.id] = key
            if (head := line.get("head")) is not None:
                roots.setdefault(head["stream"], {})[head["tree_size"]] = head["root_hash"]
                whole = whole and "leaves" in head
        return cls(path, keys, roots, whole)

    async def heads(self, stream: str) -> AsyncGenerator[Head, None]:
        """Yield a stream's heads with their leaves, the first one first.

        Raises:
            ProofUnusable: they have none.
        """
        if not self.whole:
            raise ProofUnusable(problem="its heads have no leaves (`bitinglip audit export --leaves` writes them)")
        for line in _lines(self.path):
            told: dict[str, Any] | None = line.get("head")
            if told is not None and told["stream"] == stream:
                yield Head(told["ledger_sequence"], _signed(told))


async def export(live: Live, keys: dict[str, PublicKey], at: datetime, file: BinaryIO, *, leaves: bool) -> int:
    """Write all heads and keys of a log; returns how many heads there are.

    Raises:
        NoServer: the server does not answer.
        NotAsSignedError: a head cannot be read.
        OSError: the file cannot be written.
    """
    _write(file, {"bitinglip_audit": FORMAT, "exported_at": at})
    for key in keys.values():
        _write(file, {"key": {"key_id": key.id, "public_key": key.base64}})
    count = 0
    for stream in AUDITED:
        async for head in live.heads(stream):
            told = {"stream": stream, "ledger_sequence": head.sequence} | ProofHead.of(head).model_dump()
            more = {"sequences", "leaves", "peaks"} if leaves else set[str]()
            _write(file, {"head": told | head.signed.model_dump(include=more)})
            count += 1
    return count


def _write(file: BinaryIO, document: dict[str, Any]) -> None:
    file.write(orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open("rb") as file:
            first = orjson.loads(file.readline())
            if first.get("bitinglip_audit") != FORMAT:
                raise ProofUnusable(problem=f"{path} has no heads of format {FORMAT}")
            for line in file:
                yield orjson.loads(line)
    except (OSError, orjson.JSONDecodeError, AttributeError) as error:
        raise ProofUnusable(problem=f"{path}: {error}") from error


def _signed(told: dict[str, Any]) -> LedgerSigned:
    try:
        return LedgerSigned.model_validate(told)
    except ValidationError as error:
        raise ProofUnusable(problem=f"a head cannot be read: {error}") from error
