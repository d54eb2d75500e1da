"""What goes wrong with weights on a disk: each hangs on the branch of who can act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.denied import Denied
from bitinglip.errors.rejected import Rejected
from bitinglip.errors.unavailable import Unavailable


@dataclass(eq=False, kw_only=True)
class ModelInUse(Rejected):
    """A revision cannot be dropped: somebody has it in memory, or is fetching it."""

    code, status = "model_in_use", 409
    template = "{reference} at {revision} is in use."
    remedy = "Unload it, or wait until its worker or its download has ended, then drop it again."
    reference: str
    revision: str


@dataclass(eq=False, kw_only=True)
class ImportRefused(Rejected):
    """A folder of a node is not taken in as a model."""

    code, status = "import_refused", 422
    template = "{path} is not taken in: {problem}."
    remedy = "Name the folder of a model on the node itself, with its weights as safetensors, that its agent may read."
    path: str
    problem: str


@dataclass(eq=False, kw_only=True)
class CheckFailed(Unavailable):
    """A stored model could not be compared with its digests."""

    code = "check_failed"
    template = "{reference} was not checked: {problem}"
    remedy = "It is tried again by itself; if it repeats, look at the node's log."
    reference: str
    problem: str
    retry_after_s: int = 30


@dataclass(eq=False, kw_only=True)
class StoreReadOnly(Denied):
    """The hub's cache cannot be written by this process."""

    code = "store_read_only"
    template = "The store {folder} cannot be written: what is in it can be run, and nothing is fetched or dropped."
    remedy = "Mount it writable, give this user the right to write, or name another folder as `models.hub_cache`."
    folder: str


@dataclass(eq=False, kw_only=True)
class DiskFull(Unavailable):
    """The disk has no room for what is to be fetched."""

    code = "disk_full"
    template = "{folder}: {needed_bytes} bytes are needed (the reserve is part of it), and {free_bytes} are free."
    remedy = "Drop models or make room on the disk; what was fetched already stays, and is not fetched again."
    folder: str
    needed_bytes: int
    free_bytes: int
    retry_after_s: int = 60


@dataclass(eq=False, kw_only=True)
class NoRoom(Unavailable):
    """Models have no room for another one, whatever may be dropped for it."""

    code = "no_room"
    template = (
        "{reference} needs {needed_bytes} bytes: {missing_bytes} are missing, even without all that may be dropped."
    )
    remedy = "Unpin or remove models, end the workers that have some in memory, or raise `models.disk_gb`."
    reference: str
    needed_bytes: int
    missing_bytes: int
    retry_after_s: int = 60


@dataclass(eq=False, kw_only=True)
class ChecksumMismatch(Unavailable):
    """A file came twice with bytes that are not the published ones."""

    code = "checksum_mismatch"
    template = "{path} came twice with other bytes than its digest tells ({expected}): it was not kept."
    remedy = "Look at what lies between this machine and the hub (a proxy, the memory, the disk), then fetch it again."
    path: str
    expected: str
    retry_after_s: int = 600


@dataclass(eq=False, kw_only=True)
class FetchTaken(Unavailable):
    """Another process of this machine fetches the same revision into the same store."""

    code = "fetch_taken"
    template = "{reference} at {revision} is being fetched by another process."
    remedy = "Wait for it: what it has fetched is used by all."
    reference: str
    revision: str
    retry_after_s: int = 10


@dataclass(eq=False, kw_only=True)
class FetchFailed(Unavailable):
    """A fetch ended in a way that has no name."""

    code = "fetch_failed"
    template = "{reference} could not be fetched: {problem}"
    remedy = "It is tried again by itself; if it repeats, report it with the lines of the node's log."
    reference: str
    problem: str
    retry_after_s: int = 60
