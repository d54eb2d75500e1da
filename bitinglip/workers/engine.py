"""The engine's interface, and the messages between a worker and its engine process.

A frame on the socket is four bytes of length (big endian) and a JSON array of messages, each tagged by `type`: what is
ready together travels together. The worker's side is `enginehost.py`, the process's main is `engines/host.py`.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from bitinglip.events.task import Failure, Usage
from bitinglip.tasks.parameters import ModelParameters

PROTOCOL = 1
"""Version of these messages: both sides come from one installation, so a mismatch is a defect, said in `Ready`."""

JOINING_KINDS = frozenset({"embedding", "text-generation"})
"""Kinds whose running batches take in new jobs: their models are `JoiningModel`s."""
FILE = "$file"
"""Key of a result's part that is a file."""
START_SERVER = "start"
"""`ModelSpec.vllm` of a model that a vLLM server is to be started for."""
LENGTH_BYTES = 4
MAX_FRAME_BYTES = 256 * 2**20
"""Largest frame that an engine process sends: what is more is a defect, and ends the process."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSpec(_Message):
    """A model as the engine process must load it."""

    kind: str
    reference: str
    revision: str | None = None
    path: str | None = None
    """Folder of the snapshot on this machine; none for built-in models such as `echo`."""
    written_ns: int = 0
    """When the newest of its weights was written: a file that was damaged and brought again has them loaded again."""
    parts: dict[str, str] = {}
    """Folders of other models that it needs, such as a vocoder."""
    trust_pickles: bool = False
    """Its weights may be pickles."""
    trust_code: bool = False
    """It may run code of its own."""
    quantize: Literal["int8", "int4"] | None = None
    """Precision that its linear layers are brought to when it is loaded; none: it stays as it is."""
    vllm: str | None = None
    """`start`: a vLLM server is started for it; an address: that one is joined; none: an engine of ours runs it."""

    @property
    def key(self) -> str:
        """Identity of the loaded model within the process."""
        return f"{self.kind}|{self.reference}|{self.revision or ''}|{self.written_ns}"

    @property
    def folders(self) -> list[Path]:
        """Where its files lie that are loaded here, its own folder first; none if others have loaded it."""
        if self.path is None or self.vllm not in {None, START_SERVER}:
            return []
        return [Path(folder) for folder in (self.path, *self.parts.values())]


# --- worker to engine process -----------------------------------------------------------------------------------------


class Load(_Message):
    """Load this model, unless it is loaded; answered by `Loaded` or `LoadFailed`."""

    type: Literal["load"] = "load"
    model: ModelSpec


class Unload(_Message):
    """Drop this model and give its memory back; answered by `Unloaded`."""

    type: Literal["unload"] = "unload"
    model_key: str


class JobSpec(_Message):
    """One task's share of a batch."""

    task_id: str
    params: dict[str, Any]
    files: dict[str, str] = {}
    """Where the worker has put the artifacts that the parameters name: `artifact:SHA256` -> path."""


class Run(_Message):
    """Run these jobs together on a loaded model; each is answered once, then comes `BatchDone`."""

    type: Literal["run"] = "run"
    batch: int
    model_key: str
    jobs: list[JobSpec]


class Cancel(_Message):
    """Stop this task at its next step; it is answered by `JobCancelled` (or by its result, if that is faster)."""

    type: Literal["cancel"] = "cancel"
    task_id: str


# --- engine process to worker -----------------------------------------------------------------------------------------


class Ready(_Message):
    """The process is up."""

    type: Literal["ready"] = "ready"
    protocol: int
    pid: int


class Loading(_Message):
    """How much of a model is loaded."""

    type: Literal["loading"] = "loading"
    model_key: str
    done: int
    total: int


class Loaded(_Message):
    """A model is ready to run."""

    type: Literal["loaded"] = "loaded"
    model_key: str
    load_ms: float
    memory_bytes: int
    """Memory that it takes, measured."""
    need_bytes: int = 0
    """Memory that was expected; 0 if that could not be told."""
    device: str
    dtype: str | None = None
    versions: dict[str, str] = {}


class LoadFailed(_Message):
    """A model could not be loaded."""

    type: Literal["load_failed"] = "load_failed"
    model_key: str
    failure: Failure


class Unloaded(_Message):
    """A model is gone from the device."""

    type: Literal["unloaded"] = "unloaded"
    model_key: str


class JobProgressed(_Message):
    """A step of a task, coalesced to the worker's tick rate.

    `text` is what was added since the last one, `reasoning` likewise what the model thinks before it answers; `left_ms`
    is an estimate, `preview` a small picture as a data: URL.
    """

    type: Literal["progressed"] = "progressed"
    task_id: str
    step: int
    total: int | None = None
    unit: str = "step"
    text: str | None = None
    reasoning: str | None = None
    left_ms: int | None = None
    preview: str | None = None


class JobSucceeded(_Message):
    """A task's result."""

    type: Literal["succeeded"] = "succeeded"
    task_id: str
    result: dict[str, Any]
    usage: Usage = Usage()
    run_ms: float


class JobFailed(_Message):
    """A task's failure; its neighbours in the batch go on."""

    type: Literal["failed"] = "failed"
    task_id: str
    failure: Failure


class JobCancelled(_Message):
    """A task stopped because it was cancelled."""

    type: Literal["cancelled"] = "cancelled"
    task_id: str


class BatchDone(_Message):
    """Every job of the batch was answered; the device is free."""

    type: Literal["batch_done"] = "batch_done"
    batch: int


ToEngine = Load | Unload | Run | Cancel
JobAnswer = JobSucceeded | JobFailed | JobCancelled
FromEngine = Ready | Loading | Loaded | LoadFailed | Unloaded | JobProgressed | JobAnswer | BatchDone

_TO_ENGINE: TypeAdapter[list[ToEngine]] = TypeAdapter(list[Annotated[ToEngine, Field(discriminator="type")]])
_FROM_ENGINE: TypeAdapter[list[FromEngine]] = TypeAdapter(list[Annotated[FromEngine, Field(discriminator="type")]])


def encode_frame(messages: Sequence[BaseModel]) -> bytes:
    """Encode messages as one frame."""
    return frame([encode_message(message) for message in messages])


def encode_message(message: BaseModel) -> bytes:
    """Encode one message, as it stands in a frame's array; large results are not copied for it."""
    return orjson.dumps(message.__dict__, default=_plain)


def frame(messages: Sequence[bytes]) -> bytes:
    """Put encoded messages into one frame."""
    body = b"[" + b",".join(messages) + b"]"
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, BaseModel):
        return value.model_dump()
    raise TypeError(f"{type(value).__name__} is not JSON")


def decode_to_engine(body: bytes) -> list[ToEngine]:
    """Decode the body of a frame that the worker sent."""
    return _TO_ENGINE.validate_json(body)


def decode_from_engine(body: bytes) -> list[FromEngine]:
    """Decode the body of a frame that the engine process sent."""
    return _FROM_ENGINE.validate_json(body)


# --- what an engine is ------------------------------------------------------------------------------------------------


P = TypeVar("P", bound=ModelParameters)


@dataclass(frozen=True)
class Job(Generic[P]):
    """One task in the engine process: its validated parameters, and the flag by which a cancel reaches it."""

    task_id: str
    params: P
    cancelled: threading.Event = field(default_factory=threading.Event)
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    """Paths of the artifacts that the parameters name."""
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Folder for the files of the result."""


class Sink(Protocol):
    """Where a running model reports; every call is cheap and thread-safe. Each job gets exactly one final call."""

    def progress(
        self,
        task_id: str,
        step: int,
        total: int | None = None,
        unit: str = "step",
        text: str | None = None,
        reasoning: str | None = None,
    ) -> None:
        """Report a step; calls above the tick rate are merged, their texts joined."""
        ...

    def preview(self, task_id: str, picture: str) -> None:
        """Have a small picture (a data: URL) go with the next step that is reported; the last one counts."""
        ...

    def succeed(self, task_id: str, result: dict[str, Any], usage: Usage) -> None:
        """Report the result (JSON values only); a file in it is what `result_file` returns."""
        ...

    def fail(self, task_id: str, failure: Failure) -> None:
        """Report a failure of this job alone."""
        ...

    def cancel(self, task_id: str) -> None:
        """Report that the job stopped because it was cancelled."""
        ...


def result_file(path: Path, media_type: str, **more: Any) -> dict[str, Any]:
    """Return what stands for a file in a result: the worker stores it, and puts its digest and size in its place."""
    return {FILE: str(path), "media_type": media_type, **more}


Linear = Literal["auto", "onednn", "torch"]
"""What computes float32 linear layers on a CPU; `auto`: oneDNN on x86 CPUs that are not Intel's."""


@dataclass(frozen=True)
class Placement:
    """Where and how a model is to be loaded."""

    device: str
    threads: int = 0
    dtype: str = "auto"
    """Name of the precision, or `auto`."""
    memory_bytes: int = 0
    """What models may take of the device; 0: nine tenths of what it has."""
    offload: Literal["none", "memory", "disk"] = "none"
    """Where the layers go that find no room on the device."""
    vllm_command: tuple[str, ...] = ()
    """How a vLLM server is started: what comes before the model's folder."""
    scratch: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Folder for files that live as long as the process."""
    linear: Linear = "auto"
    """What computes float32 linear layers on a CPU."""


class LoadedModel(Protocol):
    """One model in memory."""

    device: str
    dtype: str | None
    versions: dict[str, str]
    memory_bytes: int

    def run(self, jobs: Sequence[Job[Any]], sink: Sink) -> None:
        """Run a batch; blocks. An exception fails every job that has not been answered."""
        ...

    def unload(self) -> None:
        """Drop the weights and give the device's memory back."""
        ...


class Intake(Protocol):
    """Where a running batch finds the jobs that have come for its model since it began."""

    def take(self) -> Sequence[tuple[Sequence[Job[Any]], Sink]]:
        """Return new jobs, and where each lot of them is answered; the model brings them to their end as its own."""
        ...

    def tell(self, heard: Callable[[], None]) -> AbstractContextManager[None]:
        """Have `heard` called, by another thread, whenever there may be something to take, until the context ends."""
        ...


@runtime_checkable
class JoiningModel(LoadedModel, Protocol):
    """A model whose batches take in new jobs between two steps."""

    def run_joining(self, jobs: Sequence[Job[Any]], sink: Sink, intake: Intake) -> None:
        """Run a batch, and all that joins it; blocks until every job is answered."""
        ...


class Loader(Protocol):
    """How a kind is loaded: the one entry that `engines/host.py` needs for it."""

    def __call__(self, spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
        """Load the model; `progress(done, total)` reports it."""
        ...
