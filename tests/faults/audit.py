"""What the log alone tells of a run: findings against the promises, and its figures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from bitinglip.errors import IllegalTransition
from bitinglip.events.envelope import Recorded
from bitinglip.events.task import (
    TaskAssigned,
    TaskDeadLettered,
    TaskFailed,
    TaskProgressed,
    TaskQueued,
    TaskSubmitted,
    TaskSucceeded,
)
from bitinglip.tasks.state import evolve, is_terminal

ENDS = (TaskSucceeded, TaskFailed, TaskDeadLettered)
LOST = frozenset({"lost_lease", "engine_crashed", "worker_crashed", "worker_stopped"})
"""Failures of an attempt that are not its own doing."""


@dataclass(frozen=True, slots=True)
class Blow:
    """A fault as it was dealt out."""

    kind: str
    at: datetime
    pids: tuple[int, ...] = ()
    """Workers that it was meant for, or whose engine process it was."""


@dataclass(slots=True)
class Run:
    """One attempt: whose, from when to when, how it ended, and when the next one began."""

    worker_id: str
    started: datetime
    ended: datetime | None = None
    failure: str | None = None
    next_at: datetime | None = None


@dataclass(slots=True)
class Audit:
    """One task's history, looked at."""

    findings: list[str] = field(default_factory=list[str])
    runs: list[Run] = field(default_factory=list[Run])
    shape: str = ""
    state: str = "lost"
    mended: int = 0
    """How often nobody was given its work, so that it got another message."""
    waits_s: list[float] = field(default_factory=list[float])
    """From each time that it became ready to run to its assignment."""
    whole_s: float = 0.0


def audit(history: Sequence[Recorded], outcomes: Mapping[str, Iterable[str]]) -> Audit:
    """Look at one task's whole history; `outcomes` has the states that a task of each shape may end in."""
    told = Audit()
    if not history or not isinstance(history[0].event, TaskSubmitted):
        told.findings.append("it is not in the log")
        return told
    told.shape = history[0].event.metadata.get("shape", "")
    _fold(history, told)
    ends = sum(is_terminal(recorded.event) for recorded in history)
    if ends != 1:
        told.findings.append("it waits for ever" if not ends else f"it has {ends} terminal events")
    elif told.state not in outcomes[told.shape]:
        told.findings.append(f"it ended as {told.state}")
    _leases(history, told)
    told.whole_s = (history[-1].recorded_at - history[0].recorded_at).total_seconds()
    return told


def _fold(history: Sequence[Recorded], told: Audit) -> None:
    task = None
    try:
        for recorded in history:
            told.mended += isinstance(recorded.event, TaskQueued) and recorded.event.reason == "stranded"
            if isinstance(recorded.event, TaskAssigned) and task is not None:
                told.waits_s.append(max(0.0, (recorded.recorded_at - task.ready_at).total_seconds()))
            task = evolve(task, recorded.event, recorded.sequence, recorded.time)
    except IllegalTransition as error:
        told.findings.append(str(error))
    told.state = task.state if task else "lost"


def _leases(history: Sequence[Recorded], told: Audit) -> None:
    """Follow who holds the attempt: nobody else gets one, or writes about it, before its end is told."""
    holder: TaskAssigned | None = None
    for recorded in history:
        event = recorded.event
        if isinstance(event, TaskAssigned):
            if holder is not None:
                told.findings.append(f"attempt {event.attempt} is assigned while {holder.worker_id} holds another")
            holder = event
            if told.runs:
                told.runs[-1].next_at = recorded.recorded_at
            told.runs.append(Run(event.worker_id, recorded.recorded_at))
        elif isinstance(event, (TaskProgressed, *ENDS)):
            if holder is None or event.attempt != holder.attempt:
                told.findings.append(f"{event.type} of attempt {event.attempt}, which nobody holds")
            elif not isinstance(event, TaskProgressed) and event.worker_id != holder.worker_id:
                told.findings.append(f"{event.type} by {event.worker_id}, but {holder.worker_id} holds the attempt")
        if holder is not None and (isinstance(event, TaskFailed) or is_terminal(event)):
            told.runs[-1].ended = recorded.recorded_at
            told.runs[-1].failure = event.failure.kind if isinstance(event, TaskFailed | TaskDeadLettered) else None
            holder = None


def takeovers(audits: Iterable[Audit], blows: Sequence[Blow], workers: Mapping[int, str]) -> dict[str, list[float]]:
    """Return, by kind of fault, how long after it each attempt that it cost was followed by the next one."""
    struck = [(blow, {workers[pid] for pid in blow.pids if pid in workers}) for blow in blows]
    found: dict[str, list[float]] = {}
    for run in (run for one in audits for run in one.runs if run.failure in LOST and run.next_at and run.ended):
        assert run.next_at is not None
        assert run.ended is not None
        before = [blow for blow, ids in struck if run.worker_id in ids and run.started <= blow.at <= run.ended]
        if before:
            found.setdefault(before[0].kind, []).append((run.next_at - before[0].at).total_seconds())
    return found


def report(audits: Sequence[Audit], blows: Sequence[Blow], found: Mapping[str, Sequence[float]], healed: float) -> str:
    """Put a run's counts into lines."""
    states = Counter(one.state for one in audits)
    failures = Counter(run.failure for one in audits for run in one.runs if run.failure)
    attempts = Counter(len(one.runs) for one in audits)
    waits = sorted(wait for one in audits for wait in one.waits_s) or [0.0]
    runs = sum(len(one.runs) for one in audits)
    lines = [
        f"tasks: {len(audits)} ({_counts(states)})",
        f"faults: {len(blows)} ({_counts(Counter(blow.kind for blow in blows))})",
        f"attempts: {runs}, most of one task {max(attempts)}; failed: {_counts(failures)}",
        f"wait until assigned: median {waits[len(waits) // 2]:.2f} s, longest {waits[-1]:.1f} s; "
        f"longest task {max(one.whole_s for one in audits):.1f} s; the last ended {healed:.1f} s after all was healed",
        f"with nobody, and got another message: {sum(one.mended for one in audits)} times",
        *[
            f"taken over after '{kind}': {len(times)} attempts, median {sorted(times)[len(times) // 2]:.2f} s, "
            f"longest {max(times):.1f} s"
            for kind, times in sorted(found.items())
        ],
    ]
    return "\n".join(lines)


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.most_common())
