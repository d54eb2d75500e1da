"""The questions that the gateway asks: named queries -> frozen rows, on a few threads with a cursor each."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, TypeVar

import orjson

from bitinglip.errors import InvalidInput
from bitinglip.projections import queries, sql
from bitinglip.projections.database import Database
from bitinglip.projections.reports import Chosen, Report, report
from bitinglip.projections.rows import (
    AuditRow,
    BatchRow,
    ColumnSchema,
    ModelRow,
    ModelUsageRow,
    NodeRow,
    SavedQueryRow,
    TableSchema,
    TaskRow,
    WorkerRow,
    reader,
)
from bitinglip.projections.trailing import Settle

THREADS = 2
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PLACE = re.compile(r"([0-9]{1,17})\.([A-Z]{1,20})\.([0-9]{1,19})")
_T = TypeVar("_T")
_task, _worker, _node, _model = reader(TaskRow), reader(WorkerRow), reader(NodeRow), reader(ModelRow)
_batch, _usage, _asked = reader(BatchRow), reader(ModelUsageRow), reader(AuditRow)
_saved = reader(SavedQueryRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks, and which page of them; what is not given filters nothing."""

    states: tuple[str, ...] = ()
    kind: str | None = None
    model: str | None = None
    lane: str | None = None
    batch_id: str | None = None
    key_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    submitted_after: datetime | None = None
    submitted_before: datetime | None = None
    failure: str | None = None
    """Kind of its latest failure."""
    after: datetime | None = None
    """It ended after this, or was submitted after it and has not ended; `before` likewise."""
    before: datetime | None = None
    readable: bool | None = None
    """Whether it is private, and not forgotten."""
    limit: int = 50
    cursor: str | None = None
    """What the page before answered as `next_cursor`."""

    def params(self) -> dict[str, Any]:
        """Return the parameters of `tasks.sql`; one row more than the limit tells whether there is another page."""
        return {
            "cursor": _sequence(self.cursor),
            "states": list(self.states) or None,
            "kind": self.kind,
            "model": self.model,
            "lane": self.lane,
            "batch_id": self.batch_id,
            "key_id": self.key_id,
            "metadata": orjson.dumps(dict(self.metadata)).decode() if self.metadata else None,
            "submitted_after": _naive(self.submitted_after),
            "submitted_before": _naive(self.submitted_before),
            "failure": self.failure,
            "after": _naive(self.after),
            "before": _naive(self.before),
            "readable": self.readable,
            "limit": self.limit + 1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which events that somebody asked for, and which page of them; what is not given filters nothing."""

    key_id: str | None = None
    type: str | None = None
    about: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int = 50
    cursor: str | None = None

    def params(self) -> dict[str, Any]:
        """Return the parameters of `audit.sql`; one row more than the limit tells whether there is another page."""
        at, stream, sequence = _place(self.cursor)
        return {
            "key_id": self.key_id,
            "type": self.type,
            "about": self.about,
            "since": _naive(self.since),
            "until": _naive(self.until),
            "at": at,
            "stream": stream,
            "sequence": sequence,
            "limit": self.limit + 1,
        }


class CursorPool:
    """A few threads, each with its own cursor on the same database."""

    def __init__(self, database: Database, name: str, threads: int) -> None:
        self._database = database
        self._local = threading.local()
        self._cursors: list[Database] = []
        self._threads = ThreadPoolExecutor(threads, name, initializer=self._begin)

    async def run(self, work: Callable[[Database], _T]) -> _T:
        """Run the work on one of the threads, with its cursor."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(self._local.cursor))

    async def close(self) -> None:
        """Wait for what runs, and close the cursors."""
        await asyncio.to_thread(self._threads.shutdown)
        for cursor in self._cursors:
            cursor.close()

    def _begin(self) -> None:
        self._local.cursor = self._database.cursor()
        self._cursors.append(self._local.cursor)


class Queries:
    """The named queries. `run` does some work with a cursor of the database that is served now.

    `settle` waits until all that is applied is in the tables that a text may name.
    """

    def __init__(self, run: Callable[[Callable[[Database], Any]], Any], settle: Settle) -> None:
        self._run = run
        self._settle = settle

    async def task(self, task_id: str) -> TaskRow | None:
        """Return a task, or none if the read model has no such task."""
        found = await self._rows("task", {"task_id": task_id})
        return _task(found[0]) if found else None

    async def tasks(self, chosen: TaskFilter) -> tuple[list[TaskRow], str | None]:
        """Return a page of tasks, the newest first, and the cursor of the next page; none after the last.

        Raises:
            InvalidInput: the cursor is none of ours.
        """
        found = await self._rows("tasks", chosen.params())
        page = [_task(values) for values in found[: chosen.limit]]
        return page, str(page[-1].submitted_sequence) if page and len(found) > chosen.limit else None

    async def task_ids(self, chosen: TaskFilter) -> tuple[list[str], str | None]:
        """Return the ids of a page of tasks, the newest first, and the cursor of the next page; none after the last.

        Raises:
            InvalidInput: the cursor is none of ours.
        """
        found = await self._run(lambda cursor: cursor.rows(_task_ids(), chosen.params()))
        page = found[: chosen.limit]
        return [row[0] for row in page], str(page[-1][1]) if len(found) > chosen.limit else None

    async def over(self, task_ids: Seq[str], boundary: int) -> list[str]:
        """Return those of these tasks that can leave the server, with all that is up to a sequence."""
        params = {"task_ids": list(task_ids), "boundary": boundary}
        return [task_id for (task_id,) in await self._rows("over", params)]

    async def over_after(self, sequence: int) -> int:
        """Return how many tasks that are over had their last event after a sequence."""
        return (await self._rows("over_after", {"sequence": sequence}))[0][0]

    async def archived(self) -> dict[str, int]:
        """Return up to where the events of each stream are read from the archive."""
        return dict(await self._rows("archived"))

    async def span(self, task_id: str) -> tuple[int, int] | None:
        """Return the sequences of a task's first and last event; none if there is no such task."""
        found = await self._rows("span", {"task_id": task_id})
        return found[0] if found else None  # type: ignore[return-value]

    async def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state; a state without tasks is left out."""
        return dict(await self._rows("counts"))

    async def ended_since(self, since: datetime) -> dict[tuple[str, str], int]:
        """Return how many tasks a worker has brought to their end since a time, by lane and model."""
        rows = await self._rows("ended", {"since": _naive(since)})
        return {(lane, model): count for lane, model, count in rows}

    async def workers(self) -> list[WorkerRow]:
        """Return all workers that ever said something, by name."""
        return [_worker(values) for values in await self._rows("workers")]

    async def nodes(self) -> list[NodeRow]:
        """Return all nodes that ever said something, by name."""
        return [_node(values) for values in await self._rows("nodes")]

    async def worker_restarts(self) -> dict[tuple[str, str], int]:
        """Return how often workers were started again since the log began, by node and reason."""
        return {(node_id, reason): count for node_id, reason, count in await self._rows("worker_restarts")}

    async def batches(
        self, *, batch_id: str | None = None, limit: int = 50, cursor: str | None = None
    ) -> tuple[list[BatchRow], str | None]:
        """Return a page of batches, the newest first (or the one that is named), and the cursor of the next page."""
        params = {"batch_id": batch_id, "limit": limit + 1, "cursor": _sequence(cursor)}
        found = [_batch(values) for values in await self._rows("batches", params)]
        return found[:limit], str(found[limit - 1].opened_sequence) if len(found) > limit else None

    async def batches_over(self) -> list[tuple[str, int, int, dict[str, int]]]:
        """Return what is to be completed: each batch's id, its last event's sequence, its tasks, how they ended.

        The tasks are counted only if some batch waits for its completion.
        """
        if not await self._rows("batches_waiting"):
            return []
        found = await self._rows("batches_over")
        return [(batch_id, last, tasks, orjson.loads(counts)) for batch_id, last, tasks, counts in found]

    async def overdue(self, before: datetime, most: int) -> list[str]:
        """Return tasks for which something has been due since a time, and has not come; the oldest, so many at most."""
        return [task_id for (task_id,) in await self._rows("overdue", {"before": _naive(before), "limit": most})]

    async def with_work(self, before: datetime, silent: datetime, most: int) -> list[str]:
        """Return tasks that wait, and that run, since a time, if it is likely that nobody is given their work.

        So many of each at most. `silent`: a worker that has said nothing since then may be gone.
        """
        found = await self._rows("with_work", {"before": _naive(before), "silent": _naive(silent), "limit": most})
        return [task_id for (task_id,) in found]

    async def timeline(
        self,
        begin: datetime,
        until: datetime,
        width: timedelta,
        buckets: int,
        alive_since: datetime,
        silence: timedelta,
    ) -> list[tuple[int, str, int]]:
        """Return what happened by bucket (from 1) and kind, as `queries/timeline.sql` says.

        `alive_since`: since when a worker must have been seen to live; `silence`: how long one lives unseen.
        """
        params: dict[str, Any] = {"begin": _naive(begin), "until": _naive(until), "buckets": buckets}
        params |= {"width_us": width // timedelta(microseconds=1), "silence_s": silence.total_seconds()}
        return await self._rows("timeline", params | {"alive_since": _naive(alive_since)})

    async def audit(self, chosen: AuditFilter) -> tuple[list[AuditRow], str | None]:
        """Return a page of the events that somebody asked for, the newest first, and the cursor of the next page.

        Raises:
            InvalidInput: the cursor is none of ours.
        """
        found = [_asked(values) for values in await self._rows("audit", chosen.params())]
        page = found[: chosen.limit]
        return page, _cursor_after(page[-1]) if len(found) > chosen.limit else None

    async def models(self) -> list[ModelRow]:
        """Return all models that were described, or that a worker ever registered, by name."""
        return [_model(values) for values in await self._rows("models")]

    async def model_usage(self) -> dict[tuple[str, str | None], ModelUsageRow]:
        """Return what tasks made of each revision of a model, by name and revision."""
        rows = [_usage(values) for values in await self._rows("model_usage")]
        return {(row.model, row.revision): row for row in rows}

    async def saved_queries(self, name: str | None = None) -> list[SavedQueryRow]:
        """Return the saved queries by name, or the one that is named."""
        return [_saved(values) for values in await self._rows("saved_queries", {"name": name})]

    async def report(self, chosen: Chosen) -> Report:
        """Make a report."""

        async def rows(name: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
            await self._settle(queries.text(name))
            return await self._run(lambda cursor: cursor.named_rows(queries.text(name), params))

        return await report(chosen, rows)

    async def schema(self) -> list[TableSchema]:
        """Return the tables that a query can read."""
        found: list[tuple[Any, ...]] = await self._run(lambda cursor: cursor.rows(sql.blocks("system")["schema"]))
        return [
            TableSchema(name, comment, tuple(ColumnSchema(*row[2:]) for row in rows))
            for (name, comment), rows in groupby(found, lambda row: row[:2])
        ]

    async def _rows(self, name: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        return await self._run(lambda cursor: cursor.rows(queries.text(name), params or {}))


def _task_ids() -> str:
    """Return the question for the same page as that of `tasks`, without the rest of each row."""
    page = queries.text("tasks").rstrip().removesuffix(";")
    return f"select task_id, submitted_sequence from ({page}) order by submitted_sequence desc"  # noqa: S608  (ours)


def _sequence(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 19:
        raise InvalidInput(field="cursor", problem="is none that a page answered")
    return int(cursor)


def _cursor_after(row: AuditRow) -> str:
    micros = (row.recorded_at - _EPOCH) // _MICROSECOND
    return f"{micros}.{row.stream}.{row.sequence}"


def _place(cursor: str | None) -> tuple[datetime | None, str | None, int | None]:
    """Return the row that a page of the audit goes on after; the opposite of `_cursor_after`."""
    if cursor is None:
        return None, None, None
    found = _PLACE.fullmatch(cursor)
    if found is None:
        raise InvalidInput(field="cursor", problem="is none that a page answered")
    return _naive(_EPOCH + int(found[1]) * _MICROSECOND), found[2], int(found[3])


def _naive(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC).replace(tzinfo=None)
