"""The projector: checkpoint -> batch -> upcast -> apply -> commit, for every stream, one transaction at a time.

One pump a stream fetches from the log, one writer commits; DuckDB runs in a thread of its own. The life of it:

    STARTING -> CATCHING_UP -> LIVE
        any of them -> RETRYING -> the one before (a write failed: nothing is skipped)
        any of them -> STOPPED
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from enum import Enum
from functools import partial

from bitinglip.errors import NoServer
from bitinglip.events.ending import end
from bitinglip.events.envelope import Messages
from bitinglip.events.feed import TaskFeed
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections import sql
from bitinglip.projections.ahead import Ahead
from bitinglip.projections.catchup import BATCH_MOST_BYTES
from bitinglip.projections.checkpoint import Checkpoints
from bitinglip.projections.database import Database, Staged, WriteError
from bitinglip.projections.pace import AWAITED_S, MOST_REST_S, WORTHWHILE, Pace, due_at
from bitinglip.projections.source import LogSource, Source
from bitinglip.projections.trailing import Trailing
from bitinglip.projections.writer import write_prompt
from bitinglip.settings import Projections

log = logging.getLogger(__name__)

STREAMS = sql.STREAMS
BUFFER_BATCHES = 2
"""Batches that wait for the writer before a pump holds back."""
BACKOFF_S = (0.1, 0.5, 2.0, 5.0)


class State(Enum):
    """Where in its life a projector is."""

    STARTING = "starting"
    """It asks the log how far there is to go."""
    CATCHING_UP = "catching_up"
    """It applies what was in the log when it started."""
    LIVE = "live"
    """It has caught up once, and applies what comes."""
    RETRYING = "retrying"
    """A write failed; the same events are written again after a pause."""
    STOPPED = "stopped"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset({State.CATCHING_UP, State.STOPPED}),
    State.CATCHING_UP: frozenset({State.LIVE, State.RETRYING, State.STOPPED}),
    State.LIVE: frozenset({State.RETRYING, State.STOPPED}),
    State.RETRYING: frozenset({State.CATCHING_UP, State.LIVE, State.STOPPED}),
    State.STOPPED: frozenset(),
}


class Projector:
    """Keeps one database up with the log, from its stored checkpoints on."""

    def __init__(
        self,
        log: EventLog,
        database: Database,
        checkpoints: Checkpoints,
        settings: Projections,
        *,
        feed: TaskFeed | None = None,
        batches: int = 1,
        source: Source | None = None,
        on_failure: Callable[[WriteError], object] | None = None,
    ) -> None:
        """Make one that does not run yet.

        `feed`: whom to hand the events of TASKS as they come; `batches`: how often `batch_max` in a transaction;
        `source`: where to read, the log if none is given; `on_failure`: whom to tell that a write failed.
        """
        self.state = State.STARTING
        self.caught_up = asyncio.Event()
        self.writing = asyncio.Lock()
        """Held while a batch is written; by others, for as long as nothing may be."""
        self.problem: str | None = None
        """Why nothing can be written at the moment."""
        self._source = source or LogSource(log)
        self._on_failure = on_failure
        self._database = database
        self._checkpoints = checkpoints
        self._settings = settings
        self._feed = feed or TaskFeed()
        self._held_back = False
        """Whether the pump of TASKS waits for the writer."""
        self._most = settings.batch_max * batches
        self._patient = batches > 1
        """Whether nobody reads what it writes: then the fewest transactions are the best."""
        self._most_bytes = BATCH_MOST_BYTES * batches
        self._trailing = Trailing(database, settings.batch_max)
        self._targets: dict[str, int] = {}
        self._buffers = {stream: _Buffer() for stream in STREAMS}
        self._arrived = asyncio.Event()
        self._full = asyncio.Event()
        self._room = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "projector")
        self._ahead = Ahead(database) if self._patient else None
        self._taken_apart: asyncio.Queue[tuple[str, Seq[Messages], Staged | None]] = asyncio.Queue()
        """What is applied while the events after it are taken apart: one transaction's at most."""
        self._task: asyncio.Task[None] | None = None
        self._parts: list[asyncio.Task[None]] = []
        self._pace = Pace()
        self._rest_s = 0.0
        self._wrote_at = 0.0
        self._wanted = self._most
        """Events of one stream that end the gathering of a batch."""

    def start(self) -> None:
        """Begin in the background."""
        self._task = asyncio.create_task(self._run(), name="projector")
        self._task.add_done_callback(_report)

    async def stop(self) -> None:
        """End after the transaction that runs; nothing is lost, the checkpoints say where to go on."""
        await end(lambda: [self._task, *self._parts])
        await asyncio.to_thread(self._thread.shutdown)
        if self._ahead is not None:
            await self._ahead.close()

    async def settle(self, timeout_s: float) -> None:
        """Wait until what trails is as far as all else is now.

        Raises:
            ProjectionBehind: it was not in time.
        """
        wanted = {stream: self._checkpoints.applied(stream) for stream in self._trailing.streams}
        for stream, sequence in wanted.items():
            if self._trailing.settled.applied(stream) < sequence:
                self._trailing.ask()
                self._arrived.set()
                self._full.set()
                await self._trailing.settled.wait(stream, sequence, timeout_s)

    async def wait_caught_up(self) -> None:
        """Wait until all is applied that was in the log at the start; raises what ended the projector before that."""
        assert self._task is not None
        waiting = asyncio.ensure_future(self.caught_up.wait())
        try:
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
            if not self.caught_up.is_set():
                await self._task
        finally:
            waiting.cancel()

    # --- the life -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            self._targets = await self._ask_targets()
            await self._catch_up_trailing()
            self._enter(State.CATCHING_UP)
            self._look_whether_caught_up()
            self._parts = [asyncio.create_task(self._pump(stream), name=f"pump {stream}") for stream in STREAMS]
            self._parts.append(asyncio.create_task(self._write_all(), name="writer"))
            if self._ahead is not None:
                self._parts.append(asyncio.create_task(self._apply_all(), name="applier"))
            ended, _ = await asyncio.wait(self._parts, return_when=asyncio.FIRST_COMPLETED)
            for part in ended:
                part.result()
        finally:
            for part in self._parts:
                part.cancel()
            self._feed.stall()
            self._enter(State.STOPPED)

    def _enter(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        log.debug("projector: %s -> %s", self.state.value, state.value)
        self.state = state

    async def _ask_targets(self) -> dict[str, int]:
        failures = 0
        while True:
            try:
                return {stream: await self._source.last(stream) for stream in STREAMS}
            except NoServer as error:
                log.warning("the projector waits for the log: %s", error)
                await asyncio.sleep(_backoff(failures))
                failures += 1

    async def _catch_up_trailing(self) -> None:
        loop = asyncio.get_running_loop()
        targets = {stream: self._checkpoints.applied(stream) for stream in STREAMS}
        failures = 0
        while True:
            try:
                return await self._trailing.catch_up(
                    self._source, targets, lambda work: loop.run_in_executor(self._thread, work)
                )
            except NoServer as error:
                log.warning("the projector waits for the log: %s", error)
            except WriteError as error:
                log.exception("the read model could not be written by what trails")
                self._tell(error)
            await asyncio.sleep(_backoff(failures))
            failures += 1

    def _look_whether_caught_up(self) -> None:
        behind = any(self._checkpoints.applied(stream) < target for stream, target in self._targets.items())
        if self.state is State.CATCHING_UP and not behind:
            self._enter(State.LIVE)
            self._trailing.ask()  # nobody has to wait for what was there already
            self.caught_up.set()
            self._let_flow()

    # --- the pumps ----------------------------------------------------------------------------------------------------

    async def _pump(self, stream: str) -> None:
        buffer = self._buffers[stream]
        async with aclosing(self._source.read(stream, self._checkpoints.applied(stream))) as batches:
            async for messages in batches:
                if stream == TASKS:
                    self._feed.offer(messages)
                if buffer.count >= self._most * BUFFER_BATCHES:
                    await self._hold_back(stream, buffer)
                buffer.add(messages)
                self._arrived.set()
                if buffer.count >= self._wanted or self._all_is_here():
                    self._full.set()

    async def _hold_back(self, stream: str, buffer: _Buffer) -> None:
        """Wait until the writer has made room."""
        if stream == TASKS:
            self._held_back = True
            self._feed.stall()
        while buffer.count >= self._most * BUFFER_BATCHES:
            self._room.clear()
            await self._room.wait()
        if stream == TASKS:
            self._held_back = False
            self._let_flow()

    def _let_flow(self) -> None:
        """Feed followers, if what is appended now is soon here."""
        if self.caught_up.is_set() and not self._held_back:
            self._feed.flow()

    # --- the writer ---------------------------------------------------------------------------------------------------

    async def _write_all(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._trailing.due_in_s()):
                    await self._arrived.wait()
            if any(buffer.count for buffer in self._buffers.values()):
                await self._gather()
            self._arrived.clear()
            for stream in STREAMS:
                if messages := self._take(stream):
                    await self._write(stream, messages)
            if self._trailing.due_in_s() == 0:
                await self._taken_apart.join()
                await self._settle()

    async def _gather(self) -> None:
        """Let a batch grow while it is small, unless somebody waits for it.

        What comes after a quiet time is written soon, what comes on and on in batches that are worth their transaction.
        """
        if self._patient:
            await self._grow(self._most, MOST_REST_S)
            return
        came_at = min(buffer.since for buffer in self._buffers.values() if buffer.count)
        due = due_at(came_at, self._settings.flush_ms / 1000, self._wrote_at, self._rest_s)
        await self._grow(self._most, due - time.monotonic())
        if not self._awaited():
            await self._grow(WORTHWHILE, self._wrote_at + MOST_REST_S - time.monotonic())

    async def _grow(self, wanted: int, most_s: float) -> None:
        """Wait until one stream has so many events, all that there were at the start are here, or the time is over."""
        if most_s <= 0 or self._all_is_here() or any(buffer.count >= wanted for buffer in self._buffers.values()):
            return
        self._wanted = wanted
        self._full.clear()
        with self._checkpoints.asked(self._full.set), suppress(TimeoutError):
            async with asyncio.timeout(min(most_s, AWAITED_S) if self._awaited() else most_s):
                await self._full.wait()

    def _awaited(self) -> bool:
        return any(self._checkpoints.awaited(stream) for stream in STREAMS)

    def _all_is_here(self) -> bool:
        """Whether nothing is missing of what was in the log at the start: then there is nothing to wait for."""
        return self.state is State.CATCHING_UP and all(
            self._arrived_up_to(stream) >= target for stream, target in self._targets.items()
        )

    def _arrived_up_to(self, stream: str) -> int:
        return self._buffers[stream].last or self._checkpoints.applied(stream)

    def _take(self, stream: str) -> list[Messages]:
        batches = self._buffers[stream].take(self._most, self._most_bytes)
        if self._buffers[stream].count:
            self._arrived.set()
        self._room.set()
        return batches

    async def _write(self, stream: str, batches: Seq[Messages]) -> None:
        if self._ahead is None:
            await self._write_now(stream, batches, None)
            return
        staged = await self._ahead.take_apart(stream, batches)
        await self._taken_apart.join()
        self._taken_apart.put_nowait((stream, batches, staged))

    async def _apply_all(self) -> None:
        while True:
            await self._write_now(*await self._taken_apart.get())
            self._taken_apart.task_done()

    async def _write_now(self, stream: str, batches: Seq[Messages], staged: Staged | None) -> None:
        work = partial(write_prompt, self._database, stream, *batches, staged=staged)
        self._rest_s = await self._patiently(work, f"at {stream}:{batches[0].sequences[0]}")
        self._wrote_at = time.monotonic()
        self._trailing.add(stream, batches)
        self._checkpoints.advance(stream, batches[-1].sequences[-1])
        self._look_whether_caught_up()

    async def _settle(self) -> None:
        await self._patiently(self._trailing.apply, "by what trails")
        self._trailing.done()

    async def _patiently(self, work: Callable[[], None], where: str) -> float:
        """Have something written, however often that must be tried, and return how long to rest, in seconds."""
        failures, before, loop = 0, self.state, asyncio.get_running_loop()
        while True:
            try:
                async with self.writing:
                    rest_s = await loop.run_in_executor(self._thread, self._pace.timed, work)
                break
            except WriteError as error:
                log.exception("the read model could not be written %s", where)
                self._tell(error)
                if self.state is before:
                    self._enter(State.RETRYING)
                await asyncio.sleep(_backoff(failures))
                failures += 1
        if self.state is State.RETRYING:
            self._enter(before)
            self.problem = None
        return rest_s

    def _tell(self, error: WriteError) -> None:
        self.problem = str(error).partition("\n")[0]
        if self._on_failure is not None:
            self._on_failure(error)


class _Buffer:
    """Batches of one stream that wait for the writer."""

    def __init__(self) -> None:
        self.count = 0
        self.last = 0
        """Sequence of the last message that waits; 0 if none does."""
        self.since = 0.0
        """When the first message came that waits, by the monotonic clock."""
        self._batches: deque[Messages] = deque()

    def add(self, batch: Messages) -> None:
        if not self.count:
            self.since = time.monotonic()
        self._batches.append(batch)
        self.count += len(batch)
        self.last = batch.sequences[-1]

    def take(self, most: int, most_bytes: int) -> list[Messages]:
        """Take the first batches out: at least one (if there is one), and else within both bounds."""
        taken: list[Messages] = []
        while self._batches and (not taken or _within([*taken, self._batches[0]], most, most_bytes)):
            taken.append(self._batches.popleft())
        self.count -= sum(map(len, taken))
        self.last = self.last if self._batches else 0
        return taken


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the projector has ended: the read model no longer follows the log", exc_info=error)


def _within(batches: Seq[Messages], most: int, most_bytes: int) -> bool:
    return sum(map(len, batches)) <= most and sum(batch.size_bytes for batch in batches) <= most_bytes


def _backoff(failures: int) -> float:
    return BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
