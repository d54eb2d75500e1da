"""One file of the archive: Parquet, zstd; each row a message as it was, and what can be told of it in columns.

Bytes that are no event have the type `corrupt`, as in the read model. The columns describe the payload as it is, in the
version that it was written in; the same messages give the same bytes, by the same version of Arrow.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.registry import SCHEMA_PREFIX
from bitinglip.projections.arrow import pa
from bitinglip.projections.batch import CORRUPT

ROWS = 10_000
"""Rows of a group: what is in memory at a time."""
LEVEL = 6
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

SCHEMA: Any = pa.schema(
    [
        pa.field("stream", pa.string(), nullable=False),
        pa.field("sequence", pa.uint64(), nullable=False),
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("subject", pa.binary(), nullable=False),
        pa.field("payload", pa.binary(), nullable=False),
        pa.field("recorded_at", pa.timestamp("us"), nullable=False),
        pa.field("time", pa.timestamp("us"), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("type", pa.string(), nullable=False),
        pa.field("version", pa.uint16(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("about", pa.string(), nullable=False),
        pa.field("causation", pa.string()),
    ]
)
_REPEATED = ["stream", "type", "version", "source"]
_MESSAGE = ["sequence", "time_ns", "subject", "payload"]


class _Told(NamedTuple):
    """What can be told of a payload; times in microseconds since 1970."""

    time: int
    id: str
    type: str
    version: int
    source: str
    about: str
    causation: str | None


class ArchiveWriter:
    """Writes one file, a group of rows at a time."""

    def __init__(self, path: Path, stream: str) -> None:
        self.events = 0
        self.payload_bytes = 0
        self._stream = stream
        self._rows = Messages()
        self._file: Any = _parquet().ParquetWriter(
            path, SCHEMA, compression="zstd", compression_level=LEVEL, use_dictionary=_REPEATED
        )

    def add(self, sequence: int, time_ns: int, subject: bytes, payload: bytes) -> None:
        """Add one message."""
        self._rows.add(sequence, time_ns, subject, payload)
        self.events += 1
        self.payload_bytes += len(payload)
        if len(self._rows) >= ROWS:
            self._flush()

    def close(self) -> None:
        """Write what is left, and end the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if len(self._rows):
            self._file.write_table(_table(self._rows, self._stream))
            self._rows = Messages()


def messages_of(path: Path, after: int = 0, up_to: int = 2**63) -> Iterator[Messages]:
    """Yield a file's messages after a sequence, up to another one, a group of rows at a time."""
    with _parquet().ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            bounds = file.metadata.row_group(group).column(1).statistics
            if bounds.max > after and bounds.min <= up_to:
                found = _messages(file.read_row_group(group, columns=_MESSAGE))
                whole = bounds.min > after and bounds.max <= up_to
                yield found if whole else Messages.of(each for each in found if after < each.sequence <= up_to)


def task_messages_of(path: Path, task_id: str) -> list[RawMessage]:
    """Return the messages of one task."""
    found = _parquet().read_table(path, columns=_MESSAGE, filters=[("about", "==", task_id)])
    begins = f"bl.task.{task_id}.".encode()
    return [message for message in _messages(found) if message.subject.encode().startswith(begins)]


def _parquet() -> Any:
    """Return what reads and writes Parquet, which most gateways do seldom, and which takes 5 MB."""
    from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

    return parquet


def _messages(table: Any) -> Messages:
    """Return rows as messages, column by column."""
    made = Messages()
    table = table.combine_chunks()
    made.sequences = _numbers(table.column("sequence"), "Q")
    made.times_ns = _numbers(table.column("time_ns"), "q")
    made.subjects = table.column("subject").to_pylist()
    for chunk in table.column("payload").chunks:
        _, offsets, data = chunk.buffers()
        at = memoryview(offsets).cast("i")[chunk.offset : chunk.offset + len(chunk) + 1]
        before = len(made.payload) - at[0]
        made.payload += memoryview(data)[at[0] : at[-1]]
        made.offsets.extend(offset + before for offset in at[1:])
    return made


def _numbers(column: Any, code: Literal["Q", "q"]) -> array[int]:
    """Return a column of whole numbers of 64 bits, none of them null; without numpy, which a gateway need not have."""
    made: array[int] = array(code)
    for chunk in column.chunks:
        _, data = chunk.buffers()
        if len(chunk):
            made.frombytes(memoryview(data)[chunk.offset * 8 : (chunk.offset + len(chunk)) * 8])
    return made


def _table(rows: Messages, stream: str) -> Any:
    told = [_told(message, stream) for message in rows]
    columns = list(zip(*told, strict=True))
    count = len(rows)
    return pa.table(
        [
            pa.array([stream] * count, pa.string()),
            pa.array(rows.sequences, pa.uint64()),
            pa.array(rows.times_ns, pa.int64()),
            pa.array(rows.subjects, pa.binary()),
            pa.Array.from_buffers(pa.binary(), count, [None, pa.py_buffer(rows.offsets), pa.py_buffer(rows.payload)]),
            pa.array([time_ns // 1000 for time_ns in rows.times_ns], pa.timestamp("us")),
            *(pa.array(values, field.type) for values, field in zip(columns, list(SCHEMA)[6:], strict=True)),
        ],
        schema=SCHEMA,
    )


def _told(message: RawMessage, stream: str) -> _Told:
    try:
        document = orjson.loads(message.payload)
        return _Told(
            (_aware(document["time"]) - _EPOCH) // _MICROSECOND,
            _text(document["id"]),
            _text(document["type"]),
            _version(document["dataschema"]),
            _text(document["source"]),
            _text(document["subject"]),
            document.get("causationid") and _text(document["causationid"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        at = datetime.fromtimestamp(message.time_ns / 1e9, UTC)  # as the read model tells it
        return _Told(
            (at - _EPOCH) // _MICROSECOND, f"{stream}:{message.sequence}", CORRUPT, 1, "/unknown", message.subject, None
        )


def _aware(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _version(schema: str) -> int:
    version = int(schema.rpartition(":")[2])
    if not (schema.startswith(SCHEMA_PREFIX) and 0 <= version < 2**16):
        raise ValueError(schema)
    return version


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
