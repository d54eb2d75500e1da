"""What may be wrong with a question about the past."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.rejected import Rejected


@dataclass(eq=False, kw_only=True)
class NotAMoment(Rejected):
    """What was asked about the past names no moment."""

    code, status = "not_a_moment", 422
    template = "{text!r} is no moment."
    remedy = (
        "Write a time with its zone, as 2026-01-31T12:00:00Z, a distance, as '10 min ago', the sequence of an event in "
        "TASKS, or 'now'."
    )
    text: str


@dataclass(eq=False, kw_only=True)
class MomentToCome(Rejected):
    """The moment that was asked about has not come yet."""

    code, status = "moment_to_come", 422
    template = "{asked} is in the future: the log goes up to {last}."
    remedy = "Ask about a moment that has passed, or leave it out: then the answer is about now."
    asked: str
    last: str


@dataclass(eq=False, kw_only=True)
class MomentBeforeLog(Rejected):
    """The moment that was asked about is before the first event of the log."""

    code, status = "moment_before_log", 422
    template = "{asked} is before the log begins: {begins}."
    remedy = "Ask about a later moment: of what was before, nothing is known."
    asked: str
    begins: str


@dataclass(eq=False, kw_only=True)
class PastTooLarge(Rejected):
    """More tasks were on their way at a moment than are made anew for one answer."""

    code, status = "past_too_large", 422
    template = "At that moment {tasks} tasks were on their way; for one answer at most {most} are made anew."
    remedy = "List them page by page (`GET /v1/tasks?as_of=`), or look at single ones."
    tasks: int
    most: int


@dataclass(eq=False, kw_only=True)
class PastTimeout(Rejected):
    """To make a state of the past took longer than a query may run."""

    code, status = "past_timeout", 422
    template = "The state of that moment was not made within {limit_s} s."
    remedy = "Ask for less (a single task, a filter, a shorter range), or raise projections.query_timeout_s."
    limit_s: float
