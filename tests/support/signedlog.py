"""A signed log as files: an archive folder and kept heads, to be tampered with."""

# pyarrow has no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pyarrow as pa
from pyarrow import parquet

from bitinglip.events import subjects
from bitinglip.events.auditing import Live, keys_told
from bitinglip.events.envelope import RawMessage
from bitinglip.events.heads import leaf_of
from bitinglip.events.kept import export
from bitinglip.events.ledger import LedgerSigned
from bitinglip.events.log import EventLog
from bitinglip.events.notary import Notary
from bitinglip.events.signing import SigningKey
from bitinglip.events.streams import LEDGER
from bitinglip.settings import Audit
from tests.support.server import eventually

SOON = Audit(every_events=5, every_s=0.3)
SCHEMA = pa.schema(
    [("sequence", pa.uint64()), ("time_ns", pa.int64()), ("subject", pa.binary()), ("payload", pa.binary())]
)


@asynccontextmanager
async def notary(log: EventLog, settings: Audit = SOON, key: SigningKey | None = None) -> AsyncIterator[SigningKey]:
    """Let a notary sign."""
    key = key or SigningKey.make()
    running = Notary(log, settings, key, settled_s=0)
    running.start()
    yield key
    await running.close()


async def signed_up_to(log: EventLog, stream: str, sequence: int) -> LedgerSigned:
    """Wait until a head covers a sequence; returns it."""

    async def signed() -> LedgerSigned | None:
        last = await log.read_last(LEDGER, subjects.ledger_subject(stream, "signed"))
        if last is None or not isinstance(last.event, LedgerSigned):
            return None
        return last.event if last.event.sequences[-1] >= sequence else None

    return await eventually(signed, within_s=30)


async def messages_of(log: EventLog, stream: str) -> list[RawMessage]:
    """Return a stream's lasting events as an archive has them."""
    batches = Live(log).events(stream)
    return [message async for batch in batches for message in batch if leaf_of(stream, message) is not None]


def write_archive(folder: Path, stream: str, messages: list[RawMessage], per_file: int = 5) -> None:
    """Write a folder of an archive, with so many events in a file."""
    for start in range(0, len(messages), per_file):
        part = messages[start : start + per_file]
        path = folder / stream / "2026-01-01" / f"{start:012}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [message._asdict() | {"subject": message.subject.encode()} for message in part]
        parquet.write_table(pa.Table.from_pylist(rows, SCHEMA), path, compression="zstd")


async def keep_heads(log: EventLog, path: Path, *, leaves: bool = True) -> None:
    """Write the heads of a log as `bitinglip audit export` does."""
    with path.open("wb") as file:
        await export(Live(log), await keys_told(log), log.clock(), file, leaves=leaves)


def edit_heads(path: Path, **changes: object) -> None:
    """Change the first head of a file."""
    lines = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    first = next(line["head"] for line in lines if "head" in line)
    first |= changes
    path.write_bytes(b"\n".join(map(orjson.dumps, lines)) + b"\n")
