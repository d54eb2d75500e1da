"""Work that its consumer has lost sight of: finding it, and taking it out.

nats-server 2.15.1, killed while it writes, can come back with a consumer that counts a message as delivered and acked
which is still in the queue. Nobody is ever given it then.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from nats.errors import Error as NatsError
from nats.js.errors import APIError

from bitinglip.errors import CorruptEvent, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.consumers import QueueState, ask, queue_states
from bitinglip.events.direct import get_first_after
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.queue import hand_back
from bitinglip.events.streams import QUEUE, TASKS, Route
from bitinglip.ids import TaskId

MOST = 1_000
"""Stranded messages of one queue that are found at a time."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A work message that was handed out, and that nobody has."""

    route: Route
    sequence: int
    """Its sequence in QUEUE."""
    task_id: TaskId
    event_id: str
    """The event that made the task ready, as it lies in TASKS too."""


async def find_strays(connection: Connection) -> list[Stray]:
    """Return what looks stranded: one that still does a while later is.

    A consumer's ack floor may be a moment ahead of the stream, and a replica that answers may be behind it.

    Raises:
        NoServer: the server does not answer.
    """
    held = (await ask(connection, f"STREAM.INFO.{QUEUE}", {}))["state"]
    if not held["messages"]:
        return []
    states = await queue_states(connection)
    more = held["messages"] > sum(state.waiting + state.running for state in states)
    doubtful = [state for state in states if (state.running or more) and _done_with(state) >= held["first_seq"]]
    return [stray for state in doubtful for stray in await _strays(connection, state)]


async def first_waiting(connection: Connection, state: QueueState) -> Stray | None:
    """Return the first message of a queue that was not handed out yet; none if there is none that can be read.

    Raises:
        NoServer: the server does not answer.
    """
    waits = subjects.queue_filter(state.route.lane, state.route.queue)
    message = await get_first_after(connection, QUEUE, waits, state.handed_out)
    return None if message is None else _stray(state.route, message)


async def remove_stray(connection: Connection, stray: Stray) -> None:
    """Take a stranded message out of its queue; one that is gone is fine.

    Raises:
        NoServer: the server does not answer.
    """
    try:
        with suppress(APIError):
            await cancellable(connection.js.delete_msg(QUEUE, stray.sequence))
    except (NatsError, OSError) as error:
        raise NoServer(problem=str(error) or type(error).__name__) from error


async def hand_out_again(connection: Connection, state: QueueState, sequence: int) -> None:
    """Hand a message back in the place of whoever was given it: it is the next one that is handed out.

    Nothing happens if it was handed back already, or is in the queue no more.

    Raises:
        NoServer: the connection is away.
    """
    # Of what an ack's subject tells the server goes by the message's sequence, and wants its delivery to be one
    # that may still be acked; the last one is, as long as one is.
    reply = f"$JS.ACK.{QUEUE}.{state.route.consumer}.1.{sequence}.{state.deliveries}.0.0"
    await hand_back(connection, [reply])


def _done_with(state: QueueState) -> int:
    """Return up to which sequence in QUEUE nobody has a message, nor will be given one."""
    return state.acked if state.running else state.handed_out


async def _strays(connection: Connection, state: QueueState) -> list[Stray]:
    waits = subjects.queue_filter(state.route.lane, state.route.queue)
    found: list[Stray] = []
    after = 0
    while len(found) < MOST:
        message = await get_first_after(connection, QUEUE, waits, after)
        if message is None or message.sequence > _done_with(state):
            break
        after = message.sequence
        if (stray := _stray(state.route, message)) is not None:
            found.append(stray)
    return found


def _stray(route: Route, message: RawMessage) -> Stray | None:
    try:
        event_id = decode(message, TASKS).id
    except CorruptEvent:
        return None  # nobody can read it: it stays
    return Stray(route, message.sequence, TaskId(message.subject.rpartition(".")[2]), event_id)
