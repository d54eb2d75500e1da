"""Histories and databases for the tests of the projections."""

from __future__ import annotations

import atexit
import random
import tempfile
from collections.abc import Callable, Generator, Iterable
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from bitinglip.events.envelope import RawMessage, decode, encode
from bitinglip.events.registry import REGISTRY, Event
from bitinglip.events.task import (
    LANES,
    Failure,
    TaskEvent,
    TaskQueued,
    TaskSubmitted,
    Usage,
)
from bitinglip.ids import TaskId, encode_ulid
from bitinglip.projections import queries
from bitinglip.projections.database import Database
from bitinglip.projections.opening import open_database
from bitinglip.projections.query import TaskFilter
from bitinglip.projections.rows import TaskRow, reader
from bitinglip.projections.writer import write
from bitinglip.settings import Projections
from bitinglip.tasks.commands import (
    AssignAttempt,
    CancelTask,
    ExpireTask,
    FailAttempt,
    ProgressAttempt,
    RequeueTask,
    StopAttempt,
    SucceedAttempt,
    TaskCommand,
)
from bitinglip.tasks.state import Task, decide, evolve, fold

START = datetime(2026, 1, 1, tzinfo=UTC)
SETTINGS = Projections(memory_limit="200MB", threads=1)
STREAM = "TASKS"
WAITING = ("assign", "assign", "assign", "assign", "cancel", "expire", "queued", "queued", "requeue", "unknown")
RUNNING = ("progress", "succeed", "succeed", "succeed", "fail", "fail", "fail", "cancel", "stop", "queued", "unknown")
TIMES_MS = (0.0, 0.001, 0.128, 1.5, 41.502, 90_000.001)
PAUSES_MS = (1, 1, 1, 1, 1, 700, 700, 8_000, 8_000, 60_000, 60_000, 1_500_000)
KINDS = ("engine_crashed", "lost_lease", "worker_crashed", "worker_stopped", "bad_input", "out_of_memory")


def message(event: Event, sequence: int, *, about: str, at: datetime | None = None, **changes: Any) -> RawMessage:
    """Return an event as the stream holds it at this sequence, by default as many milliseconds after the start."""
    time = at or START + timedelta(milliseconds=sequence)
    payload = encode(event, id=f"E{sequence}", source="/test", time=time, about=about, **changes)
    subject = f"bl.task.{about}.{event.type.removeprefix('task.')}"
    return RawMessage(sequence, round(time.timestamp() * 1e6) * 1_000, subject, payload)


class _Unheard(TaskEvent):
    """An event of a type that this version does not know."""

    type = "task.unheard_of"
    example = {}


class Story:
    """The log of some tasks, made event by event through the task's own rules."""

    def __init__(self, choose: Callable[[Seq[Any]], Any], tasks: int) -> None:
        self._choose = choose
        self.messages: list[RawMessage] = []
        self._tasks: dict[str, Task | None] = {encode_ulid(n + 1): None for n in range(tasks)}
        self._sequence = 0
        self._now = START

    def step(self) -> None:
        """Let something happen to one of the tasks."""
        alive = [task_id for task_id, task in self._tasks.items() if task is None or not task.ended]
        task_id = TaskId(self._choose([*self._tasks, *alive, *alive]))
        task = self._tasks[task_id]
        action = self._choose(RUNNING if task is not None and task.state == "running" else WAITING)
        if task is None:
            self._tell(task_id, self._submitted(task_id))
        elif action == "queued":
            attempt = max(1, task.attempt + (0 if task.state == "running" else self._choose(range(0, 2))))
            self._tell(task_id, TaskQueued(task_id=task_id, attempt=attempt, reason="retry"))
        elif action == "unknown":
            self._tell(task_id, _Unheard(task_id=task_id))
        elif not task.ended:
            self._do(task, self._command(task, action))

    def _submitted(self, task_id: TaskId) -> TaskSubmitted:
        later = self._choose((False, True))
        return TaskSubmitted.model_validate(
            TaskSubmitted.example
            | {"task_id": task_id, "retry": {"max_attempts": self._choose(range(1, 4))}}
            | {"lane": self._choose(LANES), "model": self._choose(["org/a", "org/b"])}
            | {"key_id": self._choose([None, "key"])}
            | ({"expires_at": START + timedelta(hours=1)} if self._choose(range(0, 5)) == 0 else {})
            | ({"requires": {"vram_gb": 16}} if self._choose((False, True)) else {})
            | ({"run_at": START + timedelta(seconds=9), "metadata": {"a": "b"}} if later else {})
        )

    def _do(self, task: Task, command: TaskCommand) -> None:
        decision = decide(task, command)
        if isinstance(decision, tuple):
            for event in decision:
                self._tell(task.id, event)

    def _tell(self, task_id: TaskId, event: TaskEvent) -> None:
        self._sequence += self._choose(range(1, 4))
        self._now = at = self._now + timedelta(milliseconds=self._choose(PAUSES_MS))
        task = self._tasks[task_id]
        if not isinstance(event, _Unheard):
            self._tasks[task_id] = evolve(task, event, self._sequence, at)
        self.messages.append(message(event, self._sequence, about=task_id, at=at))

    def _command(self, task: Task, action: str) -> TaskCommand:
        now = self._now + timedelta(days=1)
        attempt = {"attempt": task.attempt, "worker_id": task.worker_id or "none"}
        match action:
            case "assign":
                worker = self._choose(["rig-1", "rig-2"])
                return AssignAttempt(
                    ready_sequence=task.ready_sequence, worker_id=worker, node_id="rig", device="cpu",
                    revision=self._choose([None, "r1"]), batch_size=1, now=now,
                )  # fmt: skip
            case "progress":
                return ProgressAttempt(**attempt, step=self._choose(range(0, 10)), total=None)
            case "succeed":
                usage = Usage(
                    input_tokens=3, output_tokens=4, images=self._choose(range(0, 3)), audio_in_ms=5, audio_out_ms=6,
                    energy_j=self._choose([None, 0.125, 7.001]),
                )  # fmt: skip
                took = {"run_ms": self._choose(TIMES_MS), "load_ms": self._choose(TIMES_MS)}
                return SucceedAttempt(**attempt, **took, result={"text": "é"}, usage=usage, versions={"v": "1"})
            case "fail":
                kind = self._choose(KINDS)
                failure = Failure(kind=kind, message=f"it broke at {self._sequence}", retryable=kind != "bad_input")
                more = self._choose([None, 9.0, 25.0]) if kind == "out_of_memory" else None
                return FailAttempt(**attempt, failure=failure, run_ms=2.5, now=now, jitter=0.5, next_vram_gb=more)
            case "requeue":
                return RequeueTask(ready_sequence=task.ready_sequence)
            case "expire":
                return ExpireTask(now=now)
            case "cancel":
                return CancelTask(reason="enough")
            case _:
                return StopAttempt(**attempt)


@st.composite
def stories(draw: Any) -> list[RawMessage]:
    """Draw the log of some tasks, interleaved; now and then without a task's first event."""
    story = Story(lambda choices: draw(st.sampled_from(choices)), draw(st.integers(1, 4)))
    for _ in range(draw(st.integers(1, 30))):
        story.step()
    return story.messages[draw(st.integers(0, 2)) :]


@st.composite
def long_stories(draw: Any) -> list[RawMessage]:
    """Draw the log of more tasks, of which much happens to each; such a log is not made smaller when a test fails."""
    chance = random.Random(draw(st.integers(0, 2**32)))
    story = Story(chance.choice, chance.randint(2, 9))
    for _ in range(chance.randint(20, 90)):
        story.step()
    return story.messages[draw(st.integers(0, 2)) :]


@st.composite
def cut(draw: Any, messages: Seq[RawMessage]) -> list[Seq[RawMessage]]:
    """Draw a way to cut messages into batches."""
    ends = sorted(draw(st.sets(st.integers(1, max(1, len(messages) - 1)), max_size=4))) if messages else []
    return [messages[a:b] for a, b in zip([0, *ends], [*ends, len(messages)], strict=True) if a < b]


@cache
def _shared() -> Database:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    database = open_database(Path(folder.name) / "p.duckdb", SETTINGS)
    atexit.register(_shared.cache_clear)
    atexit.register(database.close)
    return database


@contextmanager
def fresh_database() -> Generator[Database]:
    """Lend a database without a row: the same one each time, because opening one costs more than a test."""
    database = _shared()
    for home, table in database.rows("select schema_name, table_name from duckdb_tables() where not temporary"):
        if home != "main" or table in {"checkpoints", "build_checkpoints"}:
            database.execute(f"delete from {home}.{table}")
    for stream in ("TASKS", "WORKERS", "MODELS", "SCHEDULES", "LEDGER"):
        database.add_checkpoint(stream, "then")
    yield database


def table_of(batches: Iterable[Seq[RawMessage]], stream: str = STREAM) -> dict[str, list[tuple[Any, ...]]]:
    """Return all tables after these batches."""
    with fresh_database() as database:
        for batch in batches:
            write(database, stream, batch)
        return dump(database)


def dump(database: Database) -> dict[str, list[tuple[Any, ...]]]:
    """Return all rows of all tables that can be asked, by name."""
    shown = "select view_name from duckdb_views() where schema_name = 'main' and not internal and not temporary"
    views = database.rows(shown)
    return {name: database.rows(f"select * from {name} order by all") for (name,) in views}


def prune(database: Database, now: datetime, keep_ticks: timedelta = timedelta(days=1)) -> None:
    """Prune every projection, as the gateway does now and then."""
    now = now.astimezone(UTC).replace(tzinfo=None)
    ticks = [name for name, cls in REGISTRY.items() if not cls.lasting]
    params = {"now": now, "before": now - keep_ticks, "since": datetime(1970, 1, 1), "ticks": ticks}  # noqa: DTZ001
    for version in database.served:
        if (block := version.projection.prune(version.home)) is not None:
            database.run(block, params)


def task_rows(database: Database) -> dict[str, TaskRow]:
    """Return all tasks of a database by id."""
    rows = database.rows(queries.text("tasks"), TaskFilter(limit=10_000).params())
    return {row.task_id: row for row in map(reader(TaskRow), rows)}


def folded(messages: Iterable[RawMessage]) -> dict[str, Task]:
    """Return all tasks of a history as the Python fold tells them."""
    histories: dict[str, list[RawMessage]] = {}
    for one in messages:
        histories.setdefault(one.subject.split(".")[2], []).append(one)
    tasks = {task_id: fold(decode(one, STREAM) for one in history) for task_id, history in histories.items()}
    return {task_id: task for task_id, task in tasks.items() if task is not None}
