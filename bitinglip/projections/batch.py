"""Messages of the log as an Arrow table, every event in its newest version."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from datetime import UTC, datetime
from typing import Any, cast

import orjson

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.registry import REGISTRY, SCHEMA_PREFIX, Event, upcast
from bitinglip.projections.arrow import pa

CORRUPT = "corrupt"


def to_arrow(batches: Seq[Seq[RawMessage]]) -> Any:
    """Return the Arrow table (sequence, time_ns, payload) of messages in their newest version.

    Raises:
        ValueError: a payload is not UTF-8.
    """
    return pa.concat_tables([_table(newest(Messages.of(batch), REGISTRY)) for batch in batches])


def _table(columns: Messages) -> Any:
    """Return the columns as they lie, without a copy."""
    payload = _column(columns, pa.string(), columns.offsets, columns.payload)
    payload.validate(full=True)  # whether it is UTF-8; a cast would load pyarrow.compute, which takes 4 MB
    return pa.table(
        {
            "sequence": _column(columns, pa.uint64(), columns.sequences),
            "time_ns": _column(columns, pa.int64(), columns.times_ns),
            "payload": payload,
        }
    )


def _column(columns: Messages, kind: Any, *buffers: Any) -> Any:
    return pa.Array.from_buffers(kind, len(columns), [None, *map(pa.py_buffer, buffers)])


def newest(messages: Messages, types: Mapping[str, type[Event]]) -> Messages:
    """Bring the payloads of old versions up to date; the others are not even parsed."""
    marks = [mark for mark in _old_marks(types) if mark in messages.payload]
    if not marks:
        return messages
    return Messages.of(
        message._replace(payload=_upcast(message.payload, types))
        if any(mark in message.payload for mark in marks)
        else message
        for message in messages
    )


def corrupt(message: RawMessage, stream: str) -> RawMessage:
    """Return a readable event in the place of bytes that are none; they are kept in it."""
    document = {
        "id": f"{stream}:{message.sequence}",
        "source": "/unknown",
        "type": CORRUPT,
        "subject": message.subject,
        "time": datetime.fromtimestamp(message.time_ns / 1e9, UTC),
        "dataschema": f"{SCHEMA_PREFIX}{CORRUPT}:1",
        "data": {"base64": base64.b64encode(message.payload).decode()},
    }
    return message._replace(payload=orjson.dumps(document, option=orjson.OPT_UTC_Z))


def _old_marks(types: Mapping[str, type[Event]]) -> Iterator[bytes]:
    for cls in types.values():
        for version in range(1, cls.version):
            yield f'"{SCHEMA_PREFIX}{cls.type}:{version}"'.encode()


def _upcast(payload: bytes, types: Mapping[str, type[Event]]) -> bytes:
    try:
        document = cast("dict[str, Any]", orjson.loads(payload))
        cls = types[document["type"]]
        version = int(document["dataschema"].removeprefix(f"{SCHEMA_PREFIX}{cls.type}:"))
        data = upcast(cls, version, document["data"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return payload
    return orjson.dumps(document | {"data": data, "dataschema": cls.schema_urn()})
