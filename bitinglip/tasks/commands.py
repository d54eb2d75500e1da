"""What can be asked of a task: frozen, validated values. What comes of them is decided in `state.py`."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

import orjson
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from bitinglip.errors import InvalidInput, MalformedBody
from bitinglip.events.task import ArtifactRef, Failure, Lane, OnFailure, Requires, RetryPolicy, Usage
from bitinglip.ids import TaskId, is_ulid
from bitinglip.tasks.parameters import KINDS, PARAMETERS
from bitinglip.tasks.references import names_with_references

DEPENDENCIES_MOST = 32
LATEST_S = 366 * 86_400
"""How far ahead a start can be asked for, in seconds."""
_MODEL = re.compile(r"[^\s\x00-\x1f]+")
_METADATA_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Retry(RetryPolicy):
    """The retry policy as a caller gives it; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Demand(Requires):
    """What a worker must have, as a caller gives it; one label may be given as a word."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=64)], ...],
        BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    ] = Field(
        default=(),
        max_length=16,
        alias="label",
        description="Labels that the worker has, all of them: a word or a list.",
    )


class SubmitTask(BaseModel):
    """Ask for a task: the body of `POST /v1/tasks`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="Kind of task: " + ", ".join(KINDS) + ".")
    model: str = Field(min_length=1, max_length=200, description="Model reference: `org/name` or `org/name@revision`.")
    params: dict[str, Any] = Field(default_factory=dict, description="Parameters of the kind.")
    lane: Lane = Field(default="normal", description="How urgent it is.")
    retry: Retry = Field(default_factory=Retry, description="What follows a failed attempt.")
    requires: Demand | None = Field(default=None, description="What the worker that runs it must have.")
    metadata: dict[str, Annotated[str, Field(max_length=512)]] = Field(
        default_factory=dict, max_length=32, description="The caller's own labels; kept, and can be filtered by."
    )
    expires_at: AwareDatetime | None = Field(default=None, description="Not started by then: the task expires.")
    run_at: AwareDatetime | None = Field(default=None, description="Not to start before this time; a past one is now.")
    delay_s: float | None = Field(
        default=None, ge=0, le=LATEST_S, description="Not to start before so many seconds from now; not with run_at."
    )
    timeout_s: float | None = Field(
        default=None, gt=0, le=604_800, description="Longest that one attempt may run, in seconds."
    )
    depends_on: tuple[TaskId, ...] = Field(
        default=(), max_length=DEPENDENCIES_MOST, description="Tasks that have to end first; they are there already."
    )
    on_failure: OnFailure = Field(
        default="cancel", description="If one of them does not succeed: cancel this one, or run it all the same."
    )
    private: bool | None = Field(
        default=None,
        description="Keep parameters and results out of the log, encrypted with a key of the task's own that can be "
        "destroyed; if it is not given, `tasks.private` says.",
    )

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in PARAMETERS:
            raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")
        return kind

    @field_validator("model")
    @classmethod
    def _one_word(cls, model: str) -> str:
        if _MODEL.fullmatch(model) is None:
            raise ValueError("a model reference has no spaces or control characters")
        return model

    @field_validator("metadata")
    @classmethod
    def _plain_keys(cls, metadata: dict[str, str]) -> dict[str, str]:
        for key in metadata:
            if _METADATA_KEY.fullmatch(key) is None:
                raise ValueError(f"the key {key!r} is not made of 1 to 64 letters, digits, '.', '_' and '-'")
        return metadata

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.run_at is not None and self.delay_s is not None:
            raise ValueError("run_at and delay_s are both given; give one of them")
        if self.depends_on and (self.run_at is not None or self.delay_s is not None):
            raise ValueError("a task that waits for others starts when they have ended: give no run_at or delay_s")
        return self

    @field_validator("depends_on")
    @classmethod
    def _each_once(cls, ids: tuple[TaskId, ...]) -> tuple[TaskId, ...]:
        for each in ids:
            if not is_ulid(each):
                raise ValueError(f"{each[:100]!r} is not the id of a task")
        return tuple(dict.fromkeys(ids))

    @classmethod
    def from_json(cls, body: bytes) -> Self:
        """Read a request's body, its kind's parameters included.

        Raises:
            MalformedBody: it is not JSON in UTF-8.
            InvalidInput: a field is refused; the error names it.
        """
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise MalformedBody(problem=str(error)) from error
        try:
            command = cls.model_validate(document)
        except ValidationError as error:
            raise invalid_input(error) from error
        command.check_params()
        return command

    def checked_params(self) -> BaseModel:
        """Return the parameters as the kind's own model.

        Raises:
            InvalidInput: a parameter is refused; the error names it.
        """
        return checked(self.kind, self.params)

    def check_params(self) -> None:
        """Check the parameters, but for those that results of other tasks will be part of.

        Raises:
            InvalidInput: a parameter is refused; the error names it.
        """
        filled_later = names_with_references(self.params, self.depends_on) if self.depends_on else frozenset[str]()
        if not filled_later:
            self.checked_params()
            return
        try:
            PARAMETERS[self.kind].model_validate(self.params)
        except ValidationError as error:
            for each in error.errors(include_url=False):
                if not each["loc"] or each["loc"][0] not in filled_later:
                    raise _invalid(each, "params") from error

    def starts_at(self, now: datetime) -> datetime | None:
        """Return when it may start, in UTC; none for at once.

        Raises:
            InvalidInput: that is too far ahead, or after its expiry.
        """
        at = self.run_at if self.delay_s is None else now + timedelta(seconds=self.delay_s)
        if at is None or at <= now:
            return None
        if at > now + timedelta(seconds=LATEST_S):
            raise InvalidInput(field="run_at", problem=f"is more than {LATEST_S // 86_400} days ahead")
        if self.expires_at is not None and self.expires_at <= at:
            raise InvalidInput(field="expires_at", problem="is before the task may start")
        return at.astimezone(UTC)

    def canonical(self) -> bytes:
        """Return what is asked, in the one way to write it."""
        return orjson.dumps(self.model_dump(mode="json", exclude={"private"}), option=orjson.OPT_SORT_KEYS)

    def sha256(self) -> str:
        """Return the digest of what is asked, by which a repeat is told from another request."""
        return hashlib.sha256(self.canonical()).hexdigest()


def checked(kind: str, params: dict[str, Any]) -> BaseModel:
    """Return parameters as the model of their kind.

    Raises:
        InvalidInput: a parameter is refused; the error names it.
    """
    try:
        return PARAMETERS[kind].model_validate(params)
    except ValidationError as error:
        raise invalid_input(error, "params") from error


def invalid_input(error: ValidationError, prefix: str = "") -> InvalidInput:
    """Turn pydantic's first complaint into our error, naming the field by its path."""
    return _invalid(error.errors(include_url=False)[0], prefix)


def _invalid(first: ErrorDetails, prefix: str) -> InvalidInput:
    path = ".".join([prefix, *[str(part) for part in first["loc"]]]).strip(".")
    problem = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return InvalidInput(field=path or "body", problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelTask:
    """Ask for a task to end without a result."""

    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireTask:
    """Ask for a task to end if its time to start has passed."""

    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseTask:
    """The tasks that this one waited for have ended: it may run, with these parameters if any are given."""

    params: dict[str, Any] | None = None
    params_ref: ArtifactRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DropTask:
    """What this task waited for has not come: it cannot run."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequeueTask:
    """The work message of the task was lost sight of: it needs another one."""

    ready_sequence: int
    """Sequence in TASKS of the event that the lost message is a copy of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeTask:
    """Queue a task if the time has passed that its timer was to be set for."""

    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetTask:
    """Say that the key of a private task, which has ended, was destroyed."""

    by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignAttempt:
    """A worker holds the task's work message and wants to run the next attempt."""

    ready_sequence: int
    """Sequence in TASKS of the event that the work message is a copy of: tells a stale message from the current one."""
    worker_id: str
    node_id: str
    device: str
    revision: str | None
    batch_size: int
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressAttempt:
    """The running attempt took a step."""

    attempt: int
    worker_id: str
    step: int
    total: int | None = None
    unit: str = "step"
    text: str | None = None
    reasoning: str | None = None
    left_ms: int | None = None
    preview: str | None = None
    sealed: str | None = None
    """The three before, of a private task, as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SucceedAttempt:
    """The running attempt has a result, inline or as an artifact."""

    attempt: int
    worker_id: str
    result: dict[str, Any] | None
    result_ref: Any = None
    usage: Usage
    run_ms: float
    load_ms: float = 0.0
    device: str | None = None
    dtype: str | None = None
    versions: dict[str, str]
    files: tuple[str, ...] = ()
    """Digests of the artifacts that a private task's result names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FailAttempt:
    """The running attempt failed."""

    attempt: int
    worker_id: str
    failure: Failure
    run_ms: float
    now: datetime
    jitter: float
    """A random number from 0 to 1, drawn by the caller: the core has no randomness of its own."""
    next_vram_gb: float | None = None
    """GiB that the next attempt's device must have: this one was too small, and the caller knows of a bigger one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopAttempt:
    """The running attempt has stopped because its task was cancelled."""

    attempt: int
    worker_id: str


AttemptCommand = ProgressAttempt | SucceedAttempt | FailAttempt | StopAttempt
WaitingCommand = CancelTask | ExpireTask | ReleaseTask | DropTask | RequeueTask | WakeTask | ForgetTask
TaskCommand = WaitingCommand | AssignAttempt | AttemptCommand
