"""Facts about the log itself: what of it was archived, left the server, was signed, or lies ready as a snapshot."""

from __future__ import annotations

from bitinglip.events.registry import Event, event

_SHA256 = "0" * 64


class LedgerEvent(Event):
    """Base of the facts about the log itself."""


@event
class LedgerArchived(LedgerEvent):
    """A part of a stream lies in the archive: all its lasting events after the part before, up to `last_sequence`."""

    type = "ledger.archived"
    example = {
        "stream": "TASKS",
        "day": "2026-01-01",
        "file": "TASKS/2026-01-01/000000000001-000000004711.parquet",
        "first_sequence": 1,
        "last_sequence": 4711,
        "events": 4002,
        "size_bytes": 310_000,
        "sha256": _SHA256,
    }

    stream: str
    day: str
    """Day on which the server stored them (UTC)."""
    file: str
    """Name of the file in the archive."""
    first_sequence: int
    """Where this part begins: the one after the last of the part before, whether or not it is an event."""
    last_sequence: int
    events: int
    size_bytes: int
    sha256: str
    """Digest of the file."""
    last_time_ns: int | None = None
    """When the server stored its last event, in nanoseconds since 1970."""


@event
class LedgerTrimmed(LedgerEvent):
    """What is archived of a stream and needed no more leaves the server, up to a sequence; said before it does."""

    type = "ledger.trimmed"
    example = {"stream": "TASKS", "up_to_sequence": 4711, "removed": 3990}

    stream: str
    up_to_sequence: int
    """What is up to here and stays in the stream belongs to batches, or to tasks that something still needs."""
    removed: int
    """How many messages leave this time."""


@event
class LedgerSigned(LedgerEvent):
    """The signed head of the Merkle tree of a stream's lasting events (RFC 9162), and its leaves since the last one."""

    type = "ledger.signed"
    example = {
        "stream": "TASKS",
        "tree_size": 3,
        "root_hash": _SHA256,
        "sequences": [1, 2, 5],
        "leaves": "",
        "peaks": [_SHA256, _SHA256],
        "key_id": "0" * 16,
        "signature": "",
    }

    stream: str
    tree_size: int
    """Leaves of the whole tree."""
    root_hash: str
    """Its root, in hexadecimal."""
    sequences: list[int]
    """Sequences of the events that were added since the last signed head."""
    leaves: str
    """Their leaf hashes, 32 bytes each, end to end in Base64."""
    peaks: list[str]
    """Roots of the full subtrees that the tree consists of, the largest first: enough to go on from here."""
    key_id: str
    """Which key signed: the first 16 hexadecimal digits of the SHA-256 of the public key."""
    signature: str
    """Ed25519 signature of the head, in Base64."""


@event
class LedgerKeyAdded(LedgerEvent):
    """A gateway signs with this key from now on."""

    type = "ledger.key_added"
    example = {"key_id": "0" * 16, "public_key": "A" * 43 + "="}

    key_id: str
    """The first 16 hexadecimal digits of the SHA-256 of the public key."""
    public_key: str
    """The Ed25519 key itself, 32 bytes in Base64."""


@event
class LedgerSnapshot(LedgerEvent):
    """The read model up to these sequences lies ready in the object store, for gateways that start."""

    type = "ledger.snapshot"
    example = {
        "file": "snapshot-01JZ0000000000000000000000",
        "checkpoints": {"TASKS": 4711},
        "size_bytes": 1_000_000,
        "sha256": _SHA256,
    }

    file: str
    checkpoints: dict[str, int]
    """Last sequence of each stream that is in it."""
    versions: dict[str, str] = {}
    """Version of each projection in it."""
    size_bytes: int
    sha256: str
