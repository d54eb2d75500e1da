"""The log: append with an expected sequence, read one task, tail a stream."""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from collections.abc import Sequence as Seq
from datetime import UTC, datetime
from typing import Any

import orjson

from bitinglip.errors import BitingLipError
from bitinglip.events import actor, subjects
from bitinglip.events.appending import Append, Appender
from bitinglip.events.batch import BatchEvent, BatchExtended
from bitinglip.events.clock import ServerClock, seconds_of, system_clock
from bitinglip.events.cold import task_messages
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import QueueState, ask, queue_states
from bitinglip.events.direct import get_first_after, get_last, get_last_each
from bitinglip.events.envelope import Messages, RawMessage, Recorded, decode, encode
from bitinglip.events.ledger import LedgerEvent
from bitinglip.events.live import LiveEvents
from bitinglip.events.query import QueryEvent
from bitinglip.events.registry import Event
from bitinglip.events.schedule import ScheduleEvent
from bitinglip.events.streams import LEDGER, MODELS, QUEUE, SCHEDULES, TASKS, WORKERS, ensure_streams
from bitinglip.events.tail import IsOver, tail
from bitinglip.events.task import TaskEvent
from bitinglip.ids import Sequence, TaskId, Ulids
from bitinglip.settings import Nats

EXPECTED = "Nats-Expected-Last-Subject-Sequence"
EXPECTED_FILTER = "Nats-Expected-Last-Subject-Sequence-Subject"
TTL = "Nats-TTL"
SCHEDULE = "Nats-Schedule"
SCHEDULE_TARGET = "Nats-Schedule-Target"
SCHEDULE_TTL = "Nats-Schedule-TTL"
ROLLUP = "Nats-Rollup"

DUE_TTL_S = 30 * 86_400
"""How long a due message waits for a reactor."""
WITHDRAWAL_TTL_S = 1
PURGE_PAUSES_S = (0.0, 0.02, 0.1, 0.5)

Ids = Callable[[], str]
Clock = Callable[[], datetime]


class EventLog:
    """The event log of one process. `source` names the process in every event that it appends."""

    def __init__(
        self, connection: Connection, source: str, ids: Ids | None = None, clock: Clock = system_clock
    ) -> None:
        self.connection = connection
        self.source = source
        self.clock = clock
        self.ids = ids or Ulids(seconds_of(clock))
        self._settings = connection.settings
        self._appender = Appender(connection)

    @classmethod
    async def connect(cls, settings: Nats, source: str, ids: Ids | None = None, clock: Clock | None = None) -> EventLog:
        """Connect, and make or update the streams. Its clock is the server's, unless one is given.

        Raises:
            NoServer, ServerTooOld, ServerTooNarrow, IncompatibleStream: see there.
        """
        connection = await Connection.open(settings, name=source)
        clock = clock or ServerClock(connection)
        try:
            await ensure_streams(connection.js, settings, connection.unanswered)
            if isinstance(clock, ServerClock):
                await clock.start()
        except BaseException:
            await connection.close()
            raise
        return cls(connection, source, ids, clock)

    async def close(self) -> None:
        """Disconnect."""
        if isinstance(self.clock, ServerClock):
            await self.clock.close()
        await self.connection.close()

    @property
    def connected(self) -> bool:
        """Whether the server is there right now."""
        return self.connection.connected

    # --- append -------------------------------------------------------------------------------------------------------

    def task_append(
        self,
        event: TaskEvent,
        expected: int,
        *,
        route: tuple[str, str] | None = None,
        causation: str | None = None,
        ttl_s: int | None = None,
    ) -> Append:
        """Prepare an event of a task, to be stored only if `expected` is the sequence of the task's last event.

        `route` (lane, queue) is for events that make the task ready to run; `ttl_s` for ticks.
        """
        task_id = event.task_id
        subject = str(subjects.TaskSubject(task_id, event.type.removeprefix("task."), *(route or ())))
        scope = subjects.task_events(task_id)
        headers = {EXPECTED: str(expected), EXPECTED_FILTER: scope}
        if ttl_s is not None:
            headers[TTL] = f"{ttl_s}s"
        return self._append(event, subject, task_id, headers, scope, expected, causation)

    def timer_append(self, event: TaskEvent, attempt: int, at: datetime, route: tuple[str, str]) -> Append:
        """Prepare a timer: at its time the server itself stores the event, dated so, as the task's `queued`.

        The timer of an attempt is set at most once; setting it again is a conflict.
        """
        subject = subjects.timer(event.task_id, attempt)
        target = subjects.TaskSubject(event.task_id, event.type.removeprefix("task."), *route)
        headers = {SCHEDULE: _at(at), SCHEDULE_TARGET: str(target), EXPECTED: "0"}
        return self._append(event, subject, event.task_id, headers, subject, 0, None, at.astimezone(UTC))

    def timer_withdrawal(self, task_id: TaskId, attempt: int) -> Append:
        """Prepare the end of a timer that has not fired: a message in its place, which soon leaves the log itself."""
        headers = {ROLLUP: "sub", TTL: f"{WITHDRAWAL_TTL_S}s"}
        return self._note(subjects.timer(task_id, attempt), headers, None)

    def expiry_append(self, task_id: TaskId, at: datetime, *, replace: bool = False) -> Append:
        """Prepare a timer: at its time the server stores a message on `bl.due.<task_id>.expiry`.

        It is set at most once (setting it again is a conflict), or in place of one that is set.
        """
        headers = {
            SCHEDULE: _at(at),
            SCHEDULE_TARGET: subjects.expiry_due(task_id),
            SCHEDULE_TTL: f"{DUE_TTL_S}s",
        }
        return self._note(subjects.expiry_timer(task_id), headers, None if replace else 0)

    def look_append(self, task_id: TaskId, at: datetime | None) -> Append:
        """Prepare a timer, in place of the one that may be set: then, `bl.due.<task_id>.after`; none: withdraw it."""
        headers = {ROLLUP: "sub", TTL: f"{WITHDRAWAL_TTL_S}s"}
        if at is not None:
            target = subjects.look_due(task_id)
            headers = {SCHEDULE: _at(at), SCHEDULE_TARGET: target, SCHEDULE_TTL: f"{DUE_TTL_S}s"}
        return self._note(subjects.look_timer(task_id), headers, None)

    def fact_append(self, event: Event, subject: str, about: str, *, ttl_s: int | None = None) -> Append:
        """Prepare an event that needs no expected sequence: facts about workers and models."""
        headers = {TTL: f"{ttl_s}s"} if ttl_s is not None else {}
        return self._append(event, subject, about, headers, subject, None, None)

    def ledger_append(self, event: LedgerEvent, about: str, expected: int) -> Append:
        """Prepare an event about a stream (`readmodel`, a key), stored only if `expected` is the last of its kind."""
        subject = subjects.ledger_subject(about, event.type.removeprefix("ledger."))
        headers = {EXPECTED: str(expected)}
        return self._append(event, subject, about, headers, subject, expected, None)

    def query_append(self, event: QueryEvent, expected: int) -> Append:
        """Prepare an event of a saved query, to be stored only if `expected` is the sequence of its last one."""
        scope = subjects.query_events(event.name)
        subject = subjects.query_subject(event.name, event.type.removeprefix("query."))
        headers = {EXPECTED: str(expected), EXPECTED_FILTER: scope}
        return self._append(event, subject, event.name, headers, scope, expected, None)

    async def append(self, append: Append) -> Sequence:
        """Store one event; returns when the server has it.

        An append whose ack does not come is sent again, and recognised if it was stored after all.

        Raises:
            Conflict: the last event is not the expected one.
            NoServer: the server did not answer in `append_timeout_s`, sent again included. The event may be stored.
            NotPermitted: this user may not store it.
            StreamFull, PayloadTooLarge: the server refused it for good.
        """
        outcome = (await self.append_all([append]))[0]
        if isinstance(outcome, BitingLipError):
            raise outcome
        return outcome

    async def append_all(self, appends: Seq[Append]) -> list[Sequence | BitingLipError]:
        """Store many events, all in flight at once (bounded); returns each one's sequence or error, in order."""
        return await self._appender.append_all(appends)

    def schedule_append(self, event: ScheduleEvent, expected: int, *, ttl_s: int | None = None) -> Append:
        """Prepare an event of a schedule, to be stored only if `expected` is the sequence of its last one."""
        scope = subjects.schedule_events(event.schedule_id)
        headers = {EXPECTED: str(expected), EXPECTED_FILTER: scope} | ({TTL: f"{ttl_s}s"} if ttl_s is not None else {})
        subject = f"bl.{event.type.replace('.', f'.{event.schedule_id}.')}"
        return self._append(event, subject, event.schedule_id, headers, scope, expected, None)

    def batch_append(self, event: BatchEvent, expected: int) -> Append:
        """Prepare an event of a batch, to be stored only if `expected` is the sequence of its last one."""
        scope = subjects.batch_events(event.batch_id)
        headers = {EXPECTED: str(expected), EXPECTED_FILTER: scope}
        part = event.part if isinstance(event, BatchExtended) else None
        subject = subjects.batch_subject(event.batch_id, event.type, part)
        return self._append(event, subject, event.batch_id, headers, scope, expected, None)

    def alarm_append(self, schedule_id: str, at: datetime) -> Append:
        """Prepare a schedule's alarm, in place of the one that may be set."""
        headers = {SCHEDULE: _at(at), SCHEDULE_TARGET: subjects.alarm_due(schedule_id), SCHEDULE_TTL: f"{DUE_TTL_S}s"}
        return self._note(subjects.alarm(schedule_id), headers, None, due_at=at)

    def _note(self, subject: str, headers: dict[str, str], expected: int | None, **told: datetime) -> Append:
        """Prepare a message that is no event: it only makes the server, or a reactor, do something."""
        note_id = self.ids()
        headers = headers if expected is None else headers | {EXPECTED: str(expected)}
        return Append(subject, note_id, orjson.dumps({"id": note_id} | told), headers, subject, expected)

    def _append(
        self,
        event: Event,
        subject: str,
        about: str,
        headers: dict[str, str],
        scope: str,
        expected: int | None,
        causation: str | None,
        time: datetime | None = None,
    ) -> Append:
        event_id, at = self.ids(), time or self.clock()
        payload = encode(
            event,
            id=event_id,
            source=self.source,
            time=at,
            about=about,
            causation=causation,
            actor=actor.current(),
        )
        return Append(subject, event_id, payload, headers, scope, expected)

    # --- read ---------------------------------------------------------------------------------------------------------

    async def read_task(self, task_id: TaskId, after: int = 0) -> list[Recorded]:
        """Return a task's events after a sequence, in order, ticks included; none if there is no such task.

        What has left the server comes from the archive, if this process reads it.

        Raises:
            NoServer: the server does not answer.
        """
        messages = await task_messages(self.connection, task_id, after)
        return [decode(message, TASKS) for message in messages]

    async def read_last(self, stream: str, subject: str) -> Recorded | None:
        """Return the last event on a subject (wildcards allowed); none if there is none."""
        message = await get_last(self.connection, stream, subject)
        return None if message is None else decode(message, stream)

    async def knows_cold(self, task_id: TaskId) -> bool:
        """Tell whether there is such a task that may have left the server, as far as this process can tell.

        Raises:
            NoServer: the server does not answer.
            ProjectionBehind: what tells it has not come so far.
        """
        return self.connection.cold is not None and await self.connection.cold.knows(task_id)

    async def has_left(self, task_id: TaskId) -> bool:
        """Tell whether the server holds nothing of a task any more.

        Raises:
            NoServer: the server does not answer.
        """
        return await get_last(self.connection, TASKS, subjects.task_events(task_id)) is None

    async def first_after(self, stream: str, after: int, filters: Seq[str] = ()) -> list[RawMessage]:
        """Return, for each of a stream's filters, the first message after a sequence; those without one are left out.

        Raises:
            NoServer: the server does not answer.
        """
        chosen = filters or STREAM_FILTERS[stream]
        found = [await get_first_after(self.connection, stream, subject, after) for subject in chosen]
        return [message for message in found if message is not None]

    async def read_latest(self, stream: str, subject: str) -> list[Recorded]:
        """Return the last event on each subject that matches (wildcards allowed), at most 1,024 of them."""
        return [decode(message, stream) for message in await get_last_each(self.connection, stream, subject)]

    async def subjects_of(self, stream: str, subject: str) -> list[str]:
        """Return the subjects of a stream that match."""
        told = await ask(self.connection, f"STREAM.INFO.{stream}", {"subjects_filter": subject})
        return list(told["state"].get("subjects") or {})

    async def last_sequence(self, stream: str) -> Sequence:
        """Return the sequence of a stream's last event; 0 for an empty stream."""
        return (await self._bounds(stream))[1]

    async def first_sequence(self, stream: str) -> Sequence:
        """Return the sequence of the first event that a stream still holds; last + 1 when it is empty."""
        return (await self._bounds(stream))[0]

    async def messages(self, stream: str) -> int:
        """Return how many messages a stream still holds, timers and alarms among them."""
        return (await self._state(stream))["messages"]

    async def stream_created(self, stream: str) -> str:
        """Return when a stream was made: another answer than before means that the log was made anew."""
        told = await ask(self.connection, f"STREAM.INFO.{stream}", {})
        return datetime.fromisoformat(told["created"]).isoformat()

    async def queue_states(self) -> list[QueueState]:
        """Return all queues with what waits and runs, by their consumers' names.

        Raises:
            NoServer: the server does not answer.
        """
        return sorted(await queue_states(self.connection), key=lambda state: state.route.consumer)

    async def queue_depths(self) -> dict[str, int]:
        """Return how many work messages wait or run, by consumer (`<lane>-<queue>`)."""
        return {state.route.consumer: state.waiting + state.running for state in await self.queue_states()}

    async def oldest_waiting_s(self, state: QueueState) -> float | None:
        """Return how long the first of a queue's waiting work messages has waited; none if there is none.

        Raises:
            NoServer: the server does not answer.
        """
        if not state.waiting:
            return None
        waits = subjects.queue_filter(state.route.lane, state.route.queue)
        first = await get_first_after(self.connection, QUEUE, waits, state.handed_out)
        return None if first is None else max(0.0, self.clock().timestamp() - first.time_ns / 1e9)

    def tail(
        self, stream: str, after: int, *, filters: Seq[str] = (), most: int = 4_096, over: IsOver | None = None
    ) -> AsyncGenerator[Messages, None]:
        """Yield a stream's messages after a sequence, in order, without gap or repeat, over reconnects.

        Each batch is what has arrived, 1 to `most` messages. It waits for more: close it. It never ends, unless `over`,
        which is asked in quiet moments with the last sequence, says so.
        """
        chosen = filters or STREAM_FILTERS[stream]
        return tail(self.connection, stream, after, chosen, most, over)

    async def follow_task(self, task_id: TaskId, after: int = 0) -> AsyncGenerator[list[Recorded], None]:
        """Yield a task's events after a sequence: its history, then live, joined without gap or repeat. Never ends."""
        live = LiveEvents(self.connection, task_id)
        await live.open()
        try:
            async for batch in live.batches(after):
                yield [decode(message, TASKS) for message in batch]
        finally:
            await live.close()

    async def purge_queued(self, lane: str, queue: str, task_id: TaskId) -> None:
        """Take a task's work message out of its queue; the log itself is never purged.

        The server copies a message into its queue a moment after it is in the log: one that is not there yet is
        waited for, a little.
        """
        subject = subjects.queue_subject(lane, queue, task_id)
        for pause_s in PURGE_PAUSES_S:
            await asyncio.sleep(pause_s)
            if await self._purge(subject):
                return

    async def _purge(self, subject: str) -> int:
        """Take the messages of a subject out of QUEUE; returns how many there were."""
        return (await ask(self.connection, f"STREAM.PURGE.{QUEUE}", {"filter": subject})).get("purged", 0)

    async def _bounds(self, stream: str) -> tuple[Sequence, Sequence]:
        state = await self._state(stream)
        return Sequence(state["first_seq"]), Sequence(state["last_seq"])

    async def _state(self, stream: str) -> dict[str, Any]:
        """Return what the server tells of what a stream holds."""
        state: dict[str, Any] = (await ask(self.connection, f"STREAM.INFO.{stream}", {}))["state"]
        return state


STREAM_FILTERS: dict[str, tuple[str, ...]] = {
    TASKS: (subjects.TASKS, subjects.BATCHES),
    WORKERS: subjects.WORKERS,
    MODELS: (subjects.MODELS,),
    SCHEDULES: (subjects.SCHEDULES,),
    LEDGER: (subjects.LEDGER, subjects.QUERIES),
}
"""The events of each stream: timers and alarms, which lie in TASKS and SCHEDULES as well, are none."""


def _at(moment: datetime) -> str:
    return f"@at {moment.astimezone(UTC).isoformat(timespec='microseconds').replace('+00:00', 'Z')}"
