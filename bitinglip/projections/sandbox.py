"""A stranger's SQL, bounded: one SELECT in a read-only transaction, no files, no network, so long and so much."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from threading import Event, Lock, Semaphore
from typing import Any, Generic, Literal, TypeVar

import psutil

from bitinglip.errors import QueriesBusy, QueryRefused, QueryTimeout
from bitinglip.projections.brake import Brake
from bitinglip.projections.database import Database, Interrupted, Params, WriteError
from bitinglip.projections.scope import EVERYTHING, Scope, vetted
from bitinglip.projections.trailing import Settle, nothing_trails
from bitinglip.projections.values import jsonable, rows_of

__all__ = ["EVERYTHING", "Bounds", "Question", "Sandbox", "Scope", "Table", "jsonable"]

THREADS = 2
WAITING_MOST = 8
"""Queries that may wait for a thread; the next ones are to come again later."""
ROWS_PER_BATCH = 1_000
STREAMED_ROWS_PER_BATCH = 8_192
AHEAD = 4
"""Batches that are made before the first of them is taken."""
MAX_ANSWER_BYTES = 32 * 2**20
"""Largest answer in one piece, as DuckDB holds it."""
MAX_GROWTH_BYTES = 2**30
"""Most by which this process may grow while a query runs; the query is stopped then."""
LOOK_S = 0.05
"""Seconds between two looks at a running query."""
GRACE_S = 2.0
"""Seconds that DuckDB gets to notice an interruption before its caller is answered without it."""
ARROW_ERRORS = (OSError, ValueError, TypeError, OverflowError, RuntimeError, NotImplementedError, MemoryError)
"""What Arrow, or a parameter on its way into DuckDB, says."""
Explain = Literal["plan", "analyze"]
_EXPLAIN = {None: "", "plan": "explain ", "analyze": "explain analyze "}
_T = TypeVar("_T")
Run = Callable[[Callable[[Database], Any]], Awaitable[Any]]
Look = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and by whom."""

    sql: str
    params: Params = ()
    scope: Scope = EVERYTHING
    explain: Explain | None = None
    """`plan`: how it would be answered; `analyze`: how it was, with the times."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how much."""

    timeout_s: float
    max_rows: int
    max_bytes: int = MAX_ANSWER_BYTES


@dataclass(frozen=True, slots=True)
class Table:
    """The answer to a query; every value can be written as JSON."""

    columns: list[str]
    rows: list[list[Any]]
    truncated: bool
    """Whether there were more rows than asked for."""


class Sandbox:
    """Runs strangers' queries.

    `run` does some work on a thread that is kept for them, with its cursor; `settle` waits until all that is applied
    is in the tables that a text may name.
    """

    def __init__(self, run: Run, settle: Settle = nothing_trails) -> None:
        self._run = run
        self._settle = settle
        self._brake = Brake()
        self._open = 0
        self._stopping: set[asyncio.Future[None]] = set()

    async def run(self, sql: str, params: Params, timeout_s: float, max_rows: int, scope: Scope = EVERYTHING) -> Table:
        """Run one SELECT; see `ask`."""
        return await self.ask(Question(sql, params, scope), Bounds(timeout_s, max_rows))

    async def ask(self, question: Question, bounds: Bounds) -> Table:
        """Answer in one piece.

        Raises:
            QueryRefused: it is not one read-only statement, or DuckDB refuses it, or it takes too much.
            QueryTimeout: it ran longer than its bound.
            QueriesBusy: too many others wait for a thread, or none was free in time.
        """
        query = _Query(question, bounds, ROWS_PER_BATCH, _collect)
        running = self._begin(query)
        try:
            await self._see_to_its_end(query, running)
        finally:
            self._let_go(query, running)
        return _result(query, running)

    async def stream(self, question: Question, bounds: Bounds) -> AsyncGenerator[Any]:
        """Yield the answer's schema, then its Arrow batches as they are made, then whether there were more rows.

        Raises:
            QueryRefused, QueryTimeout, QueriesBusy: as for `ask`; also after some batches.
        """
        channel = _Channel()
        query = _Query(question, bounds, STREAMED_ROWS_PER_BATCH, channel.fill)
        running = self._begin(query)
        running.add_done_callback(channel.end)
        watcher = asyncio.ensure_future(self._see_to_its_end(query, running))
        watcher.add_done_callback(channel.end)
        try:
            while (item := await channel.take()) is not None:
                yield item
            yield _result(query, running)
        finally:
            watcher.cancel()
            self._let_go(query, running)

    def _begin(self, query: _Query[_T]) -> asyncio.Future[_T]:
        if self._open >= THREADS + WAITING_MOST:
            raise QueriesBusy(most=THREADS + WAITING_MOST)
        self._open += 1
        running = asyncio.ensure_future(self._settled(query))
        running.add_done_callback(self._ended)
        return running

    async def _settled(self, query: _Query[_T]) -> _T:
        await self._settle(query.question.sql)
        return await self._run(query.run)

    def _ended(self, running: asyncio.Future[Any]) -> None:
        """Count one less; a query that does not heed that it is stopped counts until it ends."""
        self._open -= 1
        if not running.cancelled():
            running.exception()

    async def _see_to_its_end(self, query: _Query[Any], running: asyncio.Future[Any]) -> None:
        await _watch(query, running)
        if query.refused and not running.done():
            self._brake.hold()
            running.add_done_callback(lambda _: self._brake.release())
        await _stop(query, running)

    def _let_go(self, query: _Query[Any], running: asyncio.Future[Any]) -> None:
        """Have a query end that nobody waits for."""
        if not running.done():
            self._stopping.add(stopping := asyncio.ensure_future(_stop(query, running)))
            stopping.add_done_callback(self._stopping.discard)


class _Query(Generic[_T]):
    """One query on its way through a thread; `use` is what is done there with its Arrow batches."""

    def __init__(
        self, question: Question, bounds: Bounds, rows_per_batch: int, use: Callable[[Any, Bounds, Look], _T]
    ) -> None:
        self.bounds = bounds
        self.refused: str | None = None
        self.started = False
        self.question = question
        self._rows_per_batch = rows_per_batch
        self._use = use
        self._halt = Event()
        self._lock = Lock()
        self._cursor: Database | None = None

    def stop(self) -> None:
        """Stop it wherever it is; to be repeated, because DuckDB forgets an interruption between two statements."""
        self._halt.set()
        with self._lock:
            if self._cursor is not None:
                self._cursor.interrupt()

    def run(self, cursor: Database) -> _T:
        """Run it on this cursor; the caller's thread blocks."""
        self._hold(cursor)
        try:
            self._look()
            self.started = True
            statement = _explained(vetted(cursor, self.question.sql, self.question.scope), self.question)
            with cursor.read_only():
                return self._answer(cursor, statement)
        except (WriteError, *ARROW_ERRORS) as error:
            if self._halt.is_set():
                raise Interrupted("stopped") from error
            raise QueryRefused(problem=str(error) or type(error).__name__) from error
        finally:
            self._hold(None)
            cursor.roll_back()  # again: until now it may have been interrupted, and the next query would find it

    def _answer(self, cursor: Database, statement: str) -> _T:
        self._look()
        reader = cursor.arrow(statement, self.question.params, self._rows_per_batch)
        return self._use(reader, self.bounds, self._look)

    def _hold(self, cursor: Database | None) -> None:
        with self._lock:
            self._cursor = cursor

    def _look(self) -> None:
        if self._halt.is_set():
            raise Interrupted("stopped")


def _explained(statement: str, question: Question) -> str:
    if question.explain is not None and question.scope.key_id is not None:
        raise QueryRefused(problem="a plan tells of rows that are not yours")
    return _EXPLAIN[question.explain] + statement


class _Channel:
    """Takes Arrow batches from the thread that makes them to the event loop; the thread waits while nobody takes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: asyncio.Queue[Any] = asyncio.Queue()
        self._room = Semaphore(AHEAD)

    def fill(self, reader: Any, bounds: Bounds, look: Look) -> bool:
        """Put the schema and the batches in; returns whether there were more rows than asked for. For the thread."""
        self._put(reader.schema, look)
        rows = size = 0
        for batch in reader:
            size += batch.nbytes
            if size > bounds.max_bytes:
                raise QueryRefused(problem=f"its answer is larger than {bounds.max_bytes} bytes")
            self._put(batch.slice(0, bounds.max_rows - rows), look)
            rows += batch.num_rows
            if rows > bounds.max_rows:
                return True
        return False

    def _put(self, item: Any, look: Look) -> None:
        while not self._room.acquire(timeout=LOOK_S):
            look()
        look()
        self._loop.call_soon_threadsafe(self._items.put_nowait, item)

    async def take(self) -> Any:
        """Return the next one; none after the last."""
        item = await self._items.get()
        self._room.release()
        return item

    def end(self, _: object) -> None:
        """Let nothing follow."""
        self._items.put_nowait(None)


def _collect(reader: Any, bounds: Bounds, look: Look) -> Table:
    columns: list[str] = list(reader.schema.names)
    rows: list[list[Any]] = []
    answer_bytes = 0
    for batch in reader:
        look()
        answer_bytes += batch.nbytes
        if answer_bytes > bounds.max_bytes:
            raise QueryRefused(problem=f"its answer is larger than {bounds.max_bytes} bytes")
        rows += rows_of(batch)
        if len(rows) > bounds.max_rows:
            return Table(columns, rows[: bounds.max_rows], truncated=True)
    return Table(columns, rows, truncated=False)


def _result(query: _Query[_T], running: asyncio.Future[_T]) -> _T:
    if query.refused is not None:
        raise QueryRefused(problem=query.refused)
    if not running.done() or isinstance(running.exception(), Interrupted):
        if not query.started:
            raise QueriesBusy(most=THREADS)
        raise QueryTimeout(limit_s=query.bounds.timeout_s)
    return running.result()


async def _watch(query: _Query[Any], running: asyncio.Future[Any]) -> None:
    """Wait for the query, until its time is up or the process has grown too much."""
    loop, process = asyncio.get_running_loop(), psutil.Process()
    deadline, most = loop.time() + query.bounds.timeout_s, process.memory_info().rss + MAX_GROWTH_BYTES
    while (left := deadline - loop.time()) > 0:
        await asyncio.wait([running], timeout=min(left, LOOK_S))
        if running.done():
            return
        if process.memory_info().rss > most:
            query.refused = "it needs too much memory"
            return


async def _stop(query: _Query[Any], running: asyncio.Future[Any]) -> None:
    """Stop the query if it still runs, and wait until it has noticed, for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GRACE_S
    while not running.done() and loop.time() < deadline:
        query.stop()
        await asyncio.wait([running], timeout=LOOK_S)
