"""Facts about models: what is known of them, what was asked for, what each node has, and what stands in for names.

A model's subject bears its name without a revision, so that one filter gives its whole life; the events name the
revision: the hub's commit, or `sha256:` and a digest for a folder that was imported or uploaded.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bitinglip.events.registry import Event, event
from bitinglip.events.task import Lane

COMMIT = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
GPT2 = {"reference": "openai-community/gpt2", "revision": COMMIT}
Source = Literal["hub", "import", "upload"]
"""Where a revision's files came from."""
IMPORT = "import"
"""Stands for the revision in what is told of an import that failed: it never had one."""


class ModelEvent(Event):
    """Base of the facts about one model."""

    reference: str
    """Its name, without a revision."""


class RevisionEvent(ModelEvent):
    """Base of the facts about one revision of a model."""

    revision: str


class HoldingEvent(RevisionEvent):
    """Base of the facts about one revision of a model on one node."""

    node_id: str


class ModelFile(BaseModel):
    """A file of a revision, of those that are loaded."""

    model_config = ConfigDict(frozen=True, extra="allow")

    path: str
    """Its place in the model's folder, with `/` between the parts."""
    size_bytes: int
    sha256: str | None = None
    """Digest of its content; none: the hub tells it of large files alone."""
    git_sha1: str | None = None
    """Git's name of its content, which is a digest too, where the hub tells no SHA-256."""


# --- what is known ----------------------------------------------------------------------------------------------------


@event
class ModelRegistered(ModelEvent):
    """A worker can run this model; said once for each kind and revision."""

    type = "model.registered"
    example = {
        "reference": "openai-community/gpt2",
        "kind": "text-generation",
        "revision": COMMIT,
        "architecture": "GPT2LMHeadModel",
        "size_bytes": 548_105_171,
        "context_tokens": 1024,
    }

    kind: str
    revision: str | None
    architecture: str | None = None
    size_bytes: int | None = None
    """Size of the weights on disk."""
    context_tokens: int | None = None
    """Longest context, in tokens; none where that has no meaning."""


@event
class ModelDescribed(RevisionEvent):
    """What a revision is, read from its configuration and the headers of its files before any weights are there."""

    type = "model.described"
    example = GPT2 | {
        "source": "hub",
        "asked_revision": "main",
        "kind": "text-generation",
        "architecture": "GPT2LMHeadModel",
        "parameters": 137_022_720,
        "dtype": "F32",
        "size_bytes": 551_000_000,
        "need_bytes": {"float32": 655_000_000, "bfloat16": 340_000_000},
        "context_tokens": 1024,
        "licence": "mit",
        "tags": ["text-generation-inference"],
        "gated": False,
        "files": [{"path": "config.json", "size_bytes": 665, "git_sha1": "10c66461e4c109db5a2196bff4bb59be30396ed8"}],
        "parts": {},
        "by": "gateway",
    }

    source: Source
    asked_revision: str | None = None
    """The branch, tag or commit that was asked for, and led to this revision."""
    kind: str | None
    """Kind of task that it serves; none: no engine takes it."""
    architecture: str | None
    parameters: int | None
    """Numbers in its weights."""
    dtype: str | None
    """Precision of most of its weights, by safetensors' name."""
    size_bytes: int
    """Size of `files`."""
    need_bytes: dict[str, int] = {}
    """Memory that it needs, running, by the precision that it is loaded in."""
    context_tokens: int | None = None
    licence: str | None = None
    tags: list[str] = []
    gated: bool = False
    """Whether its owner must let one in."""
    files: list[ModelFile]
    """The files that are loaded: what is fetched."""
    parts: dict[str, str] = {}
    """References of the models that it needs beside it, by what they are to it."""
    by: str | None = None


# --- what was asked for -----------------------------------------------------------------------------------------------


@event
class ModelFetchAsked(RevisionEvent):
    """Some nodes are to have a revision."""

    type = "model.fetch_asked"
    example = GPT2 | {"nodes": ["rig-1"], "reason": "command", "by": "gateway"}

    nodes: list[str]
    reason: Literal["command", "task", "pin"]
    by: str | None


@event
class ModelFetchCancelled(RevisionEvent):
    """Some nodes are to stop fetching a revision; what they have of it stays, for the next time."""

    type = "model.fetch_cancelled"
    example = GPT2 | {"nodes": ["rig-1"], "by": "gateway"}

    nodes: list[str]
    by: str | None


@event
class ModelRemovalAsked(RevisionEvent):
    """Some nodes are to drop a revision from their disks."""

    type = "model.removal_asked"
    example = GPT2 | {"nodes": ["rig-1"], "by": "gateway"}

    nodes: list[str]
    by: str | None


@event
class ModelCheckAsked(RevisionEvent):
    """Some nodes are to compare a revision's files with their digests, and to fetch anew what is damaged."""

    type = "model.check_asked"
    example = GPT2 | {"nodes": ["rig-1"], "repair": True, "by": "gateway"}

    nodes: list[str]
    repair: bool
    by: str | None


@event
class ModelImportAsked(ModelEvent):
    """A node is to take in a folder that lies on it."""

    type = "model.import_asked"
    example = {"reference": "lab/tuned", "node_id": "rig-1", "path": "/srv/models/tuned", "by": "gateway"}

    node_id: str
    path: str
    by: str | None


@event
class ModelPinned(RevisionEvent):
    """Some nodes are to have a revision and to keep it, whatever room others need."""

    type = "model.pinned"
    example = GPT2 | {"nodes": ["rig-1"], "by": "gateway"}

    nodes: list[str]
    by: str | None


@event
class ModelUnpinned(RevisionEvent):
    """Some nodes may drop a revision again, when they need room."""

    type = "model.unpinned"
    example = GPT2 | {"nodes": ["rig-1"], "by": "gateway"}

    nodes: list[str]
    by: str | None


# --- what nodes have --------------------------------------------------------------------------------------------------


@event
class ModelFetchStarted(HoldingEvent):
    """A node fetches what it lacks of a revision."""

    type = "model.fetch_started"
    example = GPT2 | {"node_id": "rig-1", "files": 5, "total_bytes": 551_000_000, "missing_bytes": 551_000_000}

    files: int
    total_bytes: int
    missing_bytes: int
    """What has to travel."""


@event
class ModelFetchProgressed(HoldingEvent):
    """How far a node has come with a revision; it leaves the log after its time to live."""

    type = "model.fetch_progressed"
    lasting = False
    example = GPT2 | {
        "node_id": "rig-1",
        "done_bytes": 320_000_000,
        "total_bytes": 551_000_000,
        "bytes_per_s": 41_000_000.0,
        "left_s": 5.6,
        "step": "fetching",
    }

    done_bytes: int
    total_bytes: int
    bytes_per_s: float | None
    left_s: float | None
    """Estimate of what is left."""
    step: Literal["fetching", "checking"]


@event
class ModelFetchFailed(HoldingEvent):
    """A node could not fetch a revision."""

    type = "model.fetch_failed"
    example = GPT2 | {
        "node_id": "rig-1",
        "code": "disk_full",
        "message": "It takes 551 MB, and 120 MB are free.",
        "retry_in_s": None,
    }

    code: str
    """Of the error, as in the table of errors."""
    message: str
    remedy: str | None = None
    retry_in_s: float | None
    """When it is tried again; none: not before somebody asks anew."""


@event
class ModelFetchStopped(HoldingEvent):
    """A node has stopped fetching a revision, as it was told."""

    type = "model.fetch_stopped"
    example = GPT2 | {"node_id": "rig-1", "done_bytes": 120_000_000}

    done_bytes: int


@event
class ModelStored(HoldingEvent):
    """A node has a revision, every file of it checked."""

    type = "model.stored"
    example = GPT2 | {
        "node_id": "rig-1",
        "source": "hub",
        "size_bytes": 551_000_000,
        "hub_bytes": 551_000_000,
        "peer_bytes": 0,
        "took_s": 13.4,
        "files": [
            {
                "path": "config.json",
                "size_bytes": 665,
                "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
            }
        ],
    }

    source: Source
    size_bytes: int
    hub_bytes: int = 0
    """What came from the hub for it."""
    peer_bytes: int = 0
    """What came from other nodes."""
    took_s: float = 0.0
    files: list[ModelFile]


@event
class ModelDropped(HoldingEvent):
    """A node has a revision no more."""

    type = "model.dropped"
    example = GPT2 | {"node_id": "rig-1", "freed_bytes": 551_000_000, "reason": "evicted"}

    freed_bytes: int
    reason: Literal["removed", "evicted", "missing", "damaged"]
    """`missing`: somebody else took it away; `damaged`: what is there is not what it should be."""


@event
class ModelKept(HoldingEvent):
    """A node was to drop a revision, and did not."""

    type = "model.kept"
    example = GPT2 | {"node_id": "rig-1", "problem": "a worker has it in memory"}

    problem: str


@event
class ModelChecked(HoldingEvent):
    """A node has compared a revision's files with their digests."""

    type = "model.checked"
    example = GPT2 | {
        "node_id": "rig-1",
        "files": 5,
        "checked_bytes": 551_000_000,
        "missing": [],
        "damaged": ["model.safetensors"],
        "repaired": True,
    }

    files: int
    checked_bytes: int
    missing: list[str]
    damaged: list[str]
    repaired: bool
    """Whether all is well again."""


# --- names ------------------------------------------------------------------------------------------------------------


@event
class ModelAliasSet(ModelEvent):
    """A name stands for a revision of a model from now on; `reference` is the alias."""

    type = "model.alias_set"
    example = {
        "reference": "llama",
        "model": "meta-llama/Llama-3.1-8B",
        "revision": "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
        "by": "gateway",
    }

    model: str
    revision: str
    by: str | None


@event
class ModelAliasRemoved(ModelEvent):
    """A name stands for nothing any more; `reference` is the alias."""

    type = "model.alias_removed"
    example = {"reference": "llama", "by": "gateway"}

    by: str | None


# --- queues -----------------------------------------------------------------------------------------------------------


class QueueEvent(Event):
    """Base of what somebody had the queues of a model do."""

    model: str
    lane: Lane | None
    """The lane that is meant; none: all."""
    by: str | None
    """Name of the key that asked for it; none on a gateway without keys."""
    reason: str | None = None


@event
class QueuePaused(QueueEvent):
    """What waits for the model is handed to no worker; what runs goes on."""

    type = "queue.paused"
    example = {"model": "openai-community/gpt2", "lane": "batch", "by": "gateway", "reason": "new weights are coming"}


@event
class QueueResumed(QueueEvent):
    """What waits for the model is handed to workers again."""

    type = "queue.resumed"
    example = {"model": "openai-community/gpt2", "lane": None, "by": "gateway", "reason": None}
