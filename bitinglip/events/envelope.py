"""CloudEvents 1.0 (https://cloudevents.io, structured JSON mode) around our events, both ways.

`dataschema` bears the type's version, `correlationid` the task (or worker, or model) that an event is about, and
`causationid` the event or request that led to it. `actorkey`, `actoraddress` and `requestid` say who asked, if somebody
did.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast, overload

import orjson
from pydantic import ValidationError

from bitinglip.errors import CorruptEvent
from bitinglip.events.actor import Actor, attributes, of_envelope
from bitinglip.events.registry import REGISTRY, SCHEMA_PREFIX, Event, upcast
from bitinglip.ids import EventId, Sequence

CONTENT_TYPE = "application/cloudevents+json"


class RawMessage(NamedTuple):
    """A message of a stream as it came: what the projector feeds to SQL without decoding it in Python."""

    sequence: int
    time_ns: int
    """When the server stored it, in nanoseconds since 1970."""
    subject: str
    payload: bytes


class Messages(Seq[RawMessage]):
    """Messages of a stream, column by column, their payloads end to end in one buffer.

    A million of them are no work for the garbage collector, and Arrow takes the columns as they lie.
    """

    def __init__(self) -> None:
        self.sequences = array("Q")
        self.times_ns = array("q")
        self.subjects: list[bytes] = []
        self.payload = bytearray()
        self.offsets = array("i", [0])
        """Where each payload begins, and where the last one ends: one more than there are messages."""

    @classmethod
    def of(cls, messages: Iterable[RawMessage]) -> Messages:
        """Return messages as columns: themselves, if they are that already."""
        if isinstance(messages, Messages):
            return messages
        made = cls()
        for sequence, time_ns, subject, payload in messages:
            made.add(sequence, time_ns, subject.encode(), payload)
        return made

    def add(self, sequence: int, time_ns: int, subject: bytes, payload: bytes) -> int:
        """Add one message at the end, and return the bytes of all payloads."""
        self.sequences.append(sequence)
        self.times_ns.append(time_ns)
        self.subjects.append(subject)
        self.payload += payload
        size_bytes = len(self.payload)
        self.offsets.append(size_bytes)
        return size_bytes

    @property
    def size_bytes(self) -> int:
        """Bytes of all payloads."""
        return len(self.payload)

    def __len__(self) -> int:
        return len(self.sequences)

    @overload
    def __getitem__(self, index: int) -> RawMessage: ...
    @overload
    def __getitem__(self, index: slice) -> Messages: ...
    def __getitem__(self, index: int | slice) -> RawMessage | Messages:
        if isinstance(index, slice):
            return Messages.of([self[position] for position in range(*index.indices(len(self)))])
        position = range(len(self))[index]
        payload = bytes(self.payload[self.offsets[position] : self.offsets[position + 1]])
        subject = text_of(self.subjects[position])
        return RawMessage(self.sequences[position], self.times_ns[position], subject, payload)


def text_of(subject: bytes) -> str:
    r"""Return a subject as text; nats-server takes bytes that are none, of which each stands as `\xff`."""
    return subject.decode(errors="backslashreplace")


class UnknownEvent(Event):
    """An event of a type that this version does not know: written by a newer one, kept, and passed over by folds."""

    type = "unknown"
    example = {}


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event as the log holds it."""

    stream: str
    sequence: Sequence
    recorded_at: datetime
    """When the server stored it (UTC)."""
    subject: str
    id: EventId
    type: str
    """Stable type name; that of `event` unless the event is unknown to this version."""
    source: str
    time: datetime
    """When its writer says that it happened (UTC)."""
    causation: str | None
    event: Event
    actor: Actor | None = None
    """Who made the request that led to it; none if no request did."""


def encode(
    event: Event,
    *,
    id: str,
    source: str,
    time: datetime,
    about: str,
    causation: str | None = None,
    actor: Actor | None = None,
) -> bytes:
    """Encode an event as CloudEvents JSON. `about` is what it is about: a task, a worker, a node, a model."""
    document = {
        "specversion": "1.0",
        "id": id,
        "source": source,
        "type": event.type,
        "subject": about,
        "time": time,
        "datacontenttype": "application/json",
        "dataschema": event.schema_urn(),
        "correlationid": about,
        "data": event.__dict__ | (event.model_extra or {}),
    }
    if causation is not None:
        document["causationid"] = causation
    if actor is not None:
        document |= attributes(actor)
    return orjson.dumps(document, default=_jsonable, option=orjson.OPT_UTC_Z)


def decode(message: RawMessage, stream: str) -> Recorded:
    """Decode a message of the log, bringing an event of an old version up to date.

    Raises:
        CorruptEvent: the bytes are not a CloudEvent of ours.
    """
    try:
        document = cast("dict[str, Any]", orjson.loads(message.payload))
        return Recorded(
            stream=stream,
            sequence=Sequence(message.sequence),
            recorded_at=datetime.fromtimestamp(message.time_ns / 1e9, UTC),
            subject=message.subject,
            id=EventId(document["id"]),
            type=document["type"],
            source=document["source"],
            time=datetime.fromisoformat(document["time"]),
            causation=document.get("causationid"),
            event=_decode_event(document),
            actor=of_envelope(document),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        where = f"{stream}:{message.sequence} ({message.subject})"
        raise CorruptEvent(where=where, problem=f"{type(error).__name__}: {error}") from error


def _decode_event(document: dict[str, Any]) -> Event:
    cls = REGISTRY.get(document["type"])
    data = document["data"]
    if cls is None:
        return UnknownEvent.model_validate(data)
    version = int(document["dataschema"].removeprefix(f"{SCHEMA_PREFIX}{cls.type}:"))
    return cls.model_validate(upcast(cls, version, data) if version < cls.version else data)


def _jsonable(value: Any) -> Any:
    return value.__dict__ | (value.model_extra or {})
