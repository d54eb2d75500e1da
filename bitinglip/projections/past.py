"""The state at a moment of the past, made by the projections' own SQL on one cursor, in one transaction.

A row whose last event is not after the moment is as it was. The others, which have changed since, are made from their
events up to then: staged as the projector would stage them, and applied to temporary tables. A question is then asked
of both together.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bitinglip.errors import CorruptEvent, PastTooLarge
from bitinglip.events.envelope import RawMessage, Recorded, decode
from bitinglip.events.registry import REGISTRY
from bitinglip.events.streams import TASKS, WORKERS
from bitinglip.projections import queries, sql
from bitinglip.projections.database import Database
from bitinglip.projections.moment import Moment
from bitinglip.projections.query import TaskFilter
from bitinglip.projections.rows import BatchRow, ModelUsageRow, NodeRow, TaskRow, WorkerRow, reader

log = logging.getLogger(__name__)

TICKS = sorted(cls.type for cls in REGISTRY.values() if not cls.lasting)
HEARD_S = 3_600.0
"""Heartbeats older than this, at the moment, are not read: all that still counts of them is in later ones."""
FOR_EVER_S = 1e9
CHUNK = 20_000
"""Tasks that are made anew at a time."""
MOST = 200_000
"""Most that are made anew for one answer."""
WINDOW = 200
"""Tasks that a page makes anew at first; while it is not full, eight times as many as before."""
UNNEEDED = {"tasks": ("retried", "update", "setbacks")}
"""Blocks for what a batch does not bring from the start: here it does, and `retried_as` is made of all retries; and for
another table."""
_task, _batch, _usage = reader(TaskRow), reader(BatchRow), reader(ModelUsageRow)
_worker, _node = reader(WorkerRow), reader(NodeRow)


class QueueThen(NamedTuple):
    """What waited and ran for a model in a lane."""

    lane: str
    model: str
    waiting: int
    running: int
    since: datetime | None
    """Since when the oldest waited (UTC, without a zone)."""


class Past:
    """The state at one moment. `look` is called between any two statements, and may raise to give up."""

    def __init__(self, cursor: Database, moment: Moment, look: Callable[[], None]) -> None:
        self.moment = moment
        self._cursor = cursor
        self._look = look
        self._sql = blocks(cursor.home)
        self._home = cursor.home
        self._whole = False
        self._histories: dict[str, list[Recorded]] = {}

    # --- tasks --------------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> TaskRow | None:
        """Return a task as it was; none if it was not submitted by then."""
        self._make_tasks(self._changed("where task_id = $task_id", {"task_id": task_id}))
        rows = self._task_rows([task_id])
        return rows[0] if rows else None

    def tasks(self, chosen: TaskFilter) -> tuple[list[TaskRow], str | None]:
        """Return a page of the tasks, the newest first, and the cursor of the next page; none after the last.

        Raises:
            InvalidInput: the cursor is none of ours.
        """
        rows: list[TaskRow] = []
        before, window, more = chosen.cursor, max(WINDOW, chosen.limit + 1), True
        while more and len(rows) <= chosen.limit:
            rest = replace(chosen, cursor=before, limit=chosen.limit - len(rows))
            lowest = self._make_window(rest, window)
            rows += self._page(rest, lowest)
            before, window, more = str(lowest), min(window * 8, CHUNK), lowest > 0
        page = rows[: chosen.limit]
        return page, str(page[-1].submitted_sequence) if page and len(rows) > chosen.limit else None

    def _make_window(self, chosen: TaskFilter, window: int) -> int:
        """Make the newest of the tasks anew that have changed and may be on the page.

        Returns the sequence of the oldest of them; 0 if there are no more.
        """
        settled = {"states": (), "failure": None, "after": None, "before": None}  # what may have been different then
        page = queries.text("tasks").rstrip().removesuffix(";")
        params = replace(chosen, **settled, limit=window).params()
        found = self._changed("", params, page)[:window]
        self._make_tasks(found)
        return found[-1][1] if len(found) == window else 0

    def _page(self, chosen: TaskFilter, lowest: int) -> list[TaskRow]:
        found = self._ask("tasks", chosen.params(), columns="task_id", lowest=lowest)
        return self._task_rows([task_id for (task_id,) in found])

    def _task_rows(self, ids: Seq[str]) -> list[TaskRow]:
        rows = [_task(values) for values in self._ask("tasks_named", {"ids": list(ids)})] if ids else []
        retried: dict[str, list[str]] = defaultdict(list)
        for old, new in self._rows("retries", {"ids": list(ids), "last": self.moment.of(TASKS)}) if rows else ():
            retried[old].append(new)
        return [replace(row, retried_as=retried[row.task_id]) for row in rows]

    def _changed(self, where: str, params: Mapping[str, Any], page: str = "from tasks") -> list[tuple[str, int]]:
        """Return id and first sequence of the tasks of that time that have changed since, the newest first."""
        last = self.moment.of(TASKS)
        changed = f"from {self._home}.tasks where submitted_sequence <= {last} and last_sequence > {last}"
        found = f"select task_id, submitted_sequence from ({page}) {where} order by submitted_sequence desc"  # noqa: S608
        return self._select(f"with tasks as ({changed}) {found}", params)

    def _make_tasks(self, chosen: Seq[tuple[str, int]], *, anew: bool = True) -> None:
        if anew:
            self._cursor.run_again(sql.CATALOGUE["tasks"].scratch())
        if chosen:
            firsts = [first for _, first in chosen]
            self._execute("choose_tasks", {"ids": [task_id for task_id, _ in chosen], "firsts": firsts})
            self._apply(TASKS, "tasks", min(firsts))

    # --- all tasks together -------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Return how many tasks were in each state.

        Raises:
            PastTooLarge: too many of them have changed since.
        """
        return dict(self._of_all("counts"))

    def queues(self) -> list[QueueThen]:
        """Return what waited and ran.

        Raises:
            PastTooLarge: see `counts`.
        """
        return [QueueThen(*row) for row in self._of_all("queues_then")]

    def ended_since(self, since: datetime) -> dict[tuple[str, str], int]:
        """Return how many tasks a worker brought to their end since a time, by lane and model.

        Raises:
            PastTooLarge: see `counts`.
        """
        rows = self._of_all("ended", {"since": since.replace(tzinfo=None)})
        return {(lane, model): count for lane, model, count in rows}

    def model_usage(self) -> dict[tuple[str, str | None], ModelUsageRow]:
        """Return what tasks had made of each revision of a model, by name and revision.

        Raises:
            PastTooLarge: see `counts`.
        """
        rows = [_usage(values) for values in self._of_all("model_usage")]
        return {(row.model, row.revision): row for row in rows}

    def batches(self, limit: int) -> list[BatchRow]:
        """Return the newest batches, each with what had become of its tasks.

        Raises:
            PastTooLarge: see `counts`.
        """
        self._make("batches", TASKS, {"last": self.moment.of(TASKS)})
        params = {"batch_id": None, "limit": limit, "cursor": None}
        return [_batch(values) for values in self._of_all("batches", params)]

    def _of_all(self, name: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        if not self._whole:
            self._make_all_tasks()
            self._whole = True
        return self._ask(name, params or {})

    def _make_all_tasks(self) -> None:
        [(count,)] = self._rows("changed_tasks", {"last": self.moment.of(TASKS)})
        if count > MOST:
            raise PastTooLarge(tasks=count, most=MOST)
        changed = self._changed("", {})
        self._make_tasks(())
        for start in range(0, len(changed), CHUNK):
            self._make_tasks(changed[start : start + CHUNK], anew=False)

    # --- machines -----------------------------------------------------------------------------------------------------

    def workers(self) -> list[tuple[WorkerRow, bool]]:
        """Return the workers by name, and of each whether its heartbeats of that time are still known."""
        changed = self._make("workers", WORKERS, {"last": self.moment.of(WORKERS)})
        known = self._heard("worker.heartbeat")
        rows = [_worker(values) for values in self._ask("workers", {})]
        return [(row, known or row.worker_id not in changed) for row in rows]

    def nodes(self) -> list[tuple[NodeRow, bool]]:
        """Return the nodes by name, and of each whether its heartbeats of that time are still known."""
        changed = self._make("nodes", WORKERS, {"last": self.moment.of(WORKERS)})
        known = self._heard("node.heartbeat")
        rows = [_node(values) for values in self._ask("nodes", {})]
        return [(row, known or row.node_id not in changed) for row in rows]

    def _heard(self, tick: str) -> bool:
        """Tell whether a silence at that time means something: ticks from before it are still here."""
        [(oldest,)] = self._rows("oldest_tick", {"stream": WORKERS, "ticks": [tick]})
        return oldest is not None and oldest <= self.moment.at.replace(tzinfo=None)

    # --- the events themselves ----------------------------------------------------------------------------------------

    def history(self, stream: str, about: str | None = None) -> list[Recorded]:
        """Return the events of a stream up to then, in their order: all, or those about one thing."""
        if about is None and stream in self._histories:
            return self._histories[stream]
        self._execute("payloads")
        params = {"stream": stream, "last": self.moment.of(stream), "about": about}
        rows = self._rows("history", params)
        found: list[Recorded] = []
        for sequence, at, payload in rows:
            try:
                found.append(decode(RawMessage(sequence, at, "", payload.encode()), stream))
            except CorruptEvent as error:
                log.debug("passed over: %s", error)  # as who follows the stream did, and told
        if about is None:
            self._histories[stream] = found
        return found

    # --- making and asking --------------------------------------------------------------------------------------------

    def _make(self, name: str, stream: str, params: Mapping[str, Any]) -> set[str]:
        """Make the rows of a projection anew that have changed since; returns what they are about."""
        self._cursor.run_again(sql.CATALOGUE[name].scratch())
        self._execute(f"choose_{name}", params)
        chosen = dict(self._select("select about, first from chosen"))
        if chosen:
            self._apply(stream, name, min(chosen.values()))
        return set(chosen)

    def _apply(self, stream: str, name: str, first: int) -> None:
        """Stage the events of what is chosen, none of which is before `first`, and apply them to a temporary table."""
        self._execute("payloads")
        kept_s = HEARD_S if stream == WORKERS else FOR_EVER_S
        since = self.moment.at.replace(tzinfo=None) - timedelta(seconds=kept_s)
        bounds = {"stream": stream, "first": first, "last": self.moment.of(stream)}
        self._look()
        self._cursor.gather(self._sql["incoming"], bounds | {"ticks": TICKS, "ticks_since": since})
        self._look()
        projection = sql.CATALOGUE[name]
        types = self._cursor.stage(stream, projection.staging)
        self._look()
        self._cursor.run_again(projection.applied(types, sql.SCRATCH, UNNEEDED.get(name, ())))

    def _ask(self, name: str, params: Mapping[str, Any], columns: str = "*", lowest: int = 0) -> list[tuple[Any, ...]]:
        """Ask a named question of the state at the moment; of tasks, of those that were submitted from `lowest` on."""
        asked = queries.text(name).rstrip().removesuffix(";")
        tables = ", ".join(self._table(each, lowest) for each in _tables_of(asked))
        return self._select(f"with {tables} select {columns} from ({asked})", params)  # noqa: S608  (ours)

    def _table(self, name: str, lowest: int) -> str:
        last = self.moment.of(WORKERS if name in {"workers", "nodes"} else TASKS)
        low = f" and submitted_sequence >= {lowest}" if name == "tasks" and lowest else ""
        settled = f"select * from {self._home}.{name} where last_sequence <= {last}{low}"  # noqa: S608
        return f"{name} as ({settled} union all by name select * from {sql.SCRATCH}.{name})"  # noqa: S608

    def _execute(self, block: str, params: Mapping[str, Any] | None = None) -> None:
        self._look()
        self._cursor.execute(self._sql[block], params or {})

    def _rows(self, block: str, params: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        return self._select(self._sql[block], params)

    def _select(self, statement: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        self._look()
        return self._cursor.rows(statement, params or {})


def blocks(home: str) -> dict[str, str]:
    """Return the statements of `queries/past.sql` by name, for what is served in a schema."""
    return sql.parsed(queries.text("past"), home)


def _tables_of(question: str) -> list[str]:
    return [name for name in ("tasks", "batches", "workers", "nodes") if f"from {name}" in question]


@contextmanager
def travelled(cursor: Database, moment: Moment, look: Callable[[], None] = lambda: None) -> Generator[Past]:
    """Lend the state at a moment; what was made for it is gone afterwards."""
    with cursor.read_only():
        yield Past(cursor, moment, look)
