"""Defect: we must act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.root import BitingLipError


class Defect(BitingLipError):
    """Ours to mend; logged with its context."""

    code = "defect"


class InternalError(Defect):
    """An unexpected error, the cause of which is in the gateway's log."""

    code = "internal_error"
    template = "The gateway met an unexpected error. It is in the gateway's log."
    remedy = "Send the request again; if it repeats, report it with the log's lines."


@dataclass(eq=False, kw_only=True)
class Conflict(Defect):
    """Another writer was faster: the subject's last sequence is not the expected one.

    Command handlers read again and decide again; it reaches a caller only when that failed many times over.
    """

    code, status = "conflict", 409
    template = "The log moved on at {subject}: sequence {expected} was expected to be its last."
    remedy = "Send the request again."
    subject: str
    expected: int


@dataclass(eq=False, kw_only=True)
class CorruptEvent(Defect):
    """Bytes in the log that are not an event we know how to read."""

    code = "corrupt_event"
    template = "The message at {where} is not a readable event: {problem}"
    where: str
    problem: str


@dataclass(eq=False, kw_only=True)
class LedgerDamaged(Defect):
    """A signed head in the log is not what a notary writes."""

    code = "ledger_damaged"
    template = "The signed heads of the log are damaged: {problem}"
    remedy = "Run `bitinglip audit verify`: it names the first thing that is wrong."
    problem: str


@dataclass(eq=False, kw_only=True)
class AppendRefused(Defect):
    """The server refused an append for a reason that should not occur."""

    code = "append_refused"
    template = "The server refused an event on {subject}: {problem}"
    problem: str
    subject: str


@dataclass(eq=False, kw_only=True)
class ChildFailed(Defect):
    """A process that `bitinglip up` started ended before it was ready."""

    code = "child_failed"
    template = "{name} did not start (status {exit_status}). The end of its log:\n  {told}"
    remedy = "Mend what the log says and start again."
    name: str
    exit_status: int
    told: str


@dataclass(eq=False, kw_only=True)
class EngineDied(Defect):
    """The engine process ended or broke its protocol."""

    code = "engine_died"
    template = "The engine process died: {problem}"
    remedy = "The worker replaces it by itself; the attempt is retried."
    problem: str


@dataclass(eq=False, kw_only=True)
class SealBroken(Defect):
    """Sealed bytes do not open with their owner's key: they were changed, or are another's."""

    code = "seal_broken"
    template = "The {role} of {owner} cannot be opened: the bytes are not those that were sealed."
    remedy = "They were changed on the way or in the store; if nobody did that, report it."
    owner: str
    role: str
