"""What an agent and the processes that it starts for its store say to each other: JSON, a line each.

The job comes on standard input; progress and then one outcome leave on standard output.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, SecretStr

from bitinglip.errors import BitingLipError, Unavailable
from bitinglip.events.model import ModelDescribed, ModelFile, Source

Step = Literal["fetching", "checking"]
_writing = threading.Lock()


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class PeerSource(_Message):
    """A node that has the revision, and hands its files out."""

    url: str
    """Address of its share, without a path."""
    token: str
    """Says that we may have the files of this revision."""


class FetchJob(_Message):
    """A revision to bring into a store."""

    reference: str
    revision: str
    asked_revision: str | None = None
    """The branch or tag that is to point at the revision when it is stored."""
    cache_dir: Path
    source: Source = "hub"
    """Where the revision is from: what is from no hub comes from peers alone."""
    endpoint: str | None = None
    """Address of the hub; none: huggingface_hub's own choice."""
    files: tuple[ModelFile, ...]
    peers: tuple[PeerSource, ...] = ()
    """Where files are looked for before the hub, in this order."""
    parallel: int = 4
    """Files that travel at a time."""
    min_free_bytes: int = 0
    """What is to be left on the disk."""


class CheckJob(_Message):
    """A stored revision to compare with its mark."""

    reference: str
    revision: str
    cache_dir: Path
    drop_damaged: bool = False
    """Whether what is damaged is to be removed, so that a fetch brings it again."""


class ShareJob(_Message):
    """A store whose revisions other nodes may have."""

    cache_dir: Path
    models_dir: Path | None = None
    """Where folders were taken in; none: nowhere."""
    secret: SecretStr
    """What tokens are signed with, in hexadecimal digits."""
    host: str = "127.0.0.1"
    port: int = 0
    """Zero: one that is free."""
    most_connections: int = 32
    """Who comes beyond is told to come later."""


class Listening(_Message):
    """The share takes connections."""

    port: int


class Progress(_Message):
    """How far it has come."""

    step: Step
    done_bytes: int
    total_bytes: int


class Stored(_Message):
    """The revision is there, checked and marked."""

    files: tuple[ModelFile, ...]
    """All of them with the SHA-256 of what is on the disk."""
    hub_bytes: int
    peer_bytes: int
    took_s: float


class Checked(_Message):
    """What a check found."""

    files: int
    checked_bytes: int
    missing: tuple[str, ...]
    damaged: tuple[str, ...]


class Failed(_Message):
    """It could not be done."""

    code: str
    message: str
    remedy: str
    retryable: bool
    """Whether time may help."""
    retry_after_s: float | None
    """Not to be tried again before so many seconds."""

    @classmethod
    def of(cls, error: BitingLipError) -> Failed:
        """Return what is told of an error."""
        after = float(error.retry_after_s) if isinstance(error, Unavailable) else None
        return cls(
            code=error.code,
            message=str(error),
            remedy=error.remedy,
            retryable=after is not None,
            retry_after_s=after,
        )


class Stopped(_Message):
    """It was told to stop; what is done stays for the next time."""

    done_bytes: int


class Line(BaseModel):
    """A line on standard output; one field is there."""

    listening: Listening | None = None
    progress: Progress | None = None
    stored: Stored | None = None
    checked: Checked | None = None
    described: ModelDescribed | None = None
    """Of a folder that was taken in."""
    failed: Failed | None = None
    stopped: Stopped | None = None


def say(line: Line) -> None:
    """Write a line; nobody may be listening any more."""
    parts: dict[str, BaseModel] = {name: getattr(line, name) for name in line.model_fields_set}
    text = orjson.dumps({name: part.model_dump(mode="json") for name, part in parts.items()}).decode()
    with _writing:
        try:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the agent has ended, and so shall we
            return
