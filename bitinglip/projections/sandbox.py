"""A stranger's SQL, bounded: one SELECT in a read-only transaction, no files, no network, so long and so much."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from threading import Event, Lock
from typing import Any, cast

import orjson
import psutil

from bitinglip.errors import QueryRefused, QueryTimeout
from bitinglip.projections.arrow import pa
from bitinglip.projections.database import Database, Interrupted, Params, WriteError
from bitinglip.projections.vetting import refusal

THREADS = 2
ROWS_PER_BATCH = 1_000
MAX_ANSWER_BYTES = 32 * 2**20
"""Largest answer, as DuckDB holds it."""
MAX_GROWTH_BYTES = 2**30
"""Most by which this process may grow while a query runs; the query is stopped then."""
LOOK_S = 0.05
"""Seconds between two looks at a running query."""
GRACE_S = 2.0
"""Seconds that DuckDB gets to notice an interruption before its caller is answered without it."""
ARROW_ERRORS = (OSError, ValueError, TypeError, OverflowError, RuntimeError, NotImplementedError)
"""What Arrow, or a parameter on its way into DuckDB, says."""
_EXACT = 2**63


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to a query; every value can be written as JSON."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    """Whether there were more rows than asked for."""


class Sandbox:
    """Runs strangers' queries. `run` does some work on a thread that is kept for them, with its cursor."""

    def __init__(self, run: Callable[[Callable[[Database], Table]], Awaitable[Table]]) -> None:
        self._run = run
        self._stopping: set[asyncio.Future[None]] = set()

    async def run(self, sql: str, params: Params, timeout_s: float, max_rows: int) -> Table:
        """Run one SELECT.

        Raises:
            QueryRefused: it is not one read-only statement, or DuckDB refuses it; the error says why.
            QueryTimeout: it ran longer than `timeout_s`, waiting for a free thread included.
        """
        query = _Query(sql, params, max_rows)
        running = asyncio.ensure_future(self._run(query.run))
        running.add_done_callback(_forget)
        try:
            await _watch(query, running, timeout_s)
        except asyncio.CancelledError:
            self._stopping.add(stopping := asyncio.ensure_future(_stop(query, running)))
            stopping.add_done_callback(self._stopping.discard)
            raise
        await _stop(query, running)
        if query.refused is not None:
            raise QueryRefused(problem=query.refused)
        if not running.done() or isinstance(running.exception(), Interrupted):
            raise QueryTimeout(limit_s=timeout_s)
        return running.result()


class _Query:
    """One query on its way through a thread."""

    def __init__(self, sql: str, params: Params, max_rows: int) -> None:
        self.refused: str | None = None
        self._sql = sql
        self._params = params
        self._max_rows = max_rows
        self._halt = Event()
        self._lock = Lock()
        self._cursor: Database | None = None

    def stop(self) -> None:
        """Stop it wherever it is; to be repeated, because DuckDB forgets an interruption between two statements."""
        self._halt.set()
        with self._lock:
            if self._cursor is not None:
                self._cursor.interrupt()

    def run(self, cursor: Database) -> Table:
        """Run it on this cursor; the caller's thread blocks."""
        self._hold(cursor)
        try:
            self._vet(cursor)
            with cursor.read_only():
                return self._collect(cursor)
        except (WriteError, *ARROW_ERRORS) as error:
            if self._halt.is_set():
                raise Interrupted("stopped") from error
            raise QueryRefused(problem=str(error)) from error
        finally:
            self._hold(None)

    def _hold(self, cursor: Database | None) -> None:
        with self._lock:
            self._cursor = cursor

    def _vet(self, cursor: Database) -> None:
        self._look()
        if not cursor.is_one_select(self._sql):
            raise QueryRefused(problem="it is not exactly one SELECT")
        problem = refusal(orjson.loads(cursor.rows("select json_serialize_sql(?::varchar)", [self._sql])[0][0]))
        if problem is not None:
            raise QueryRefused(problem=problem)

    def _collect(self, cursor: Database) -> Table:
        reader = cursor.arrow(self._sql, self._params, ROWS_PER_BATCH)
        columns: list[str] = list(reader.schema.names)
        rows: list[list[Any]] = []
        answer_bytes = 0
        for batch in reader:
            self._look()
            answer_bytes += batch.nbytes
            if answer_bytes > MAX_ANSWER_BYTES:
                raise QueryRefused(problem=f"its answer is larger than {MAX_ANSWER_BYTES} bytes")
            rows += _rows(batch)
            if len(rows) > self._max_rows:
                return Table(columns, rows[: self._max_rows], truncated=True)
        return Table(columns, rows, truncated=False)

    def _look(self) -> None:
        if self._halt.is_set():
            raise Interrupted("stopped")


async def _watch(query: _Query, running: asyncio.Future[Table], timeout_s: float) -> None:
    """Wait for the query, until its time is up or the process has grown too much."""
    loop, process = asyncio.get_running_loop(), psutil.Process()
    deadline, most = loop.time() + timeout_s, process.memory_info().rss + MAX_GROWTH_BYTES
    while (left := deadline - loop.time()) > 0:
        await asyncio.wait([running], timeout=min(left, LOOK_S))
        if running.done():
            return
        if process.memory_info().rss > most:
            query.refused = "it needs too much memory"
            return


async def _stop(query: _Query, running: asyncio.Future[Table]) -> None:
    """Stop the query if it still runs, and wait until it has noticed, for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GRACE_S
    while not running.done() and loop.time() < deadline:
        query.stop()
        await asyncio.wait([running], timeout=LOOK_S)


def _forget(running: asyncio.Future[Table]) -> None:
    if not running.cancelled():
        running.exception()


# --- values -----------------------------------------------------------------------------------------------------------


def _rows(batch: Any) -> Iterator[list[Any]]:
    columns = [[jsonable(value) for value in column.to_pylist()] for column in batch.columns]
    return (list(row) for row in zip(*columns, strict=True))


def jsonable(value: Any) -> Any:
    """Return a value of DuckDB's as one that JSON has: numbers that are not exact in it, times and bytes as text."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -_EXACT <= value < _EXACT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Decimal():
            return jsonable(int(value)) if value.as_tuple().exponent == 0 else str(value)
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {str(key): jsonable(item) for key, item in cast("dict[Any, Any]", value).items()}
        case list():
            return [jsonable(item) for item in cast("list[Any]", value)]
        case tuple() if isinstance(value, pa.MonthDayNano):
            months, days, nanoseconds = cast("tuple[int, int, int]", value)
            return {"months": months, "days": days, "seconds": nanoseconds / 1e9}
        case tuple():
            return [jsonable(item) for item in cast("tuple[Any, ...]", value)]
        case _:
            return str(value)
