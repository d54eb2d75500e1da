"""Work that its consumer has lost sight of: found, and handed out again.

nats-server 2.15.1, killed while it writes, can come back with a consumer that counts a message as delivered and acked
which is still in the queue. Nobody is ever given it then; a consumer made anew is given all that is there.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from bitinglip.errors import BitingLipError, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection, cancellable
from bitinglip.events.consumers import QueueState, queue_states
from bitinglip.events.direct import get_first_after
from bitinglip.events.streams import QUEUE, Route, consumer

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Seconds between two looks; what is seen the same twice is stranded."""


class StrandedWork:
    """Looks for stranded work, and mends its consumers. Several may look: each makes sure before it acts."""

    def __init__(self, connection: Connection, look_s: float = LOOK_S) -> None:
        self._connection = connection
        self._look_s = look_s
        self._seen: dict[Route, int] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._run(), name="stranded work")

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> list[Route]:
        """Look once; returns the queues whose consumers were made anew.

        Raises:
            NoServer: the server does not answer.
        """
        found = await self._stranded()
        again = [route for route, oldest in found.items() if self._seen.get(route) == oldest]
        self._seen = found
        if not again:
            return []
        sure = await self._stranded()
        mended = [route for route in again if sure.get(route) == found[route]]
        for route in mended:
            log.warning("work in %s was handed to nobody; its consumer is made anew", route.consumer)
            await self._make_anew(route)
        return mended

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            try:
                await self.look()
            except BitingLipError as error:
                log.debug("no look for stranded work: %s", error)

    async def _stranded(self) -> dict[Route, int]:
        """Return the oldest message of each queue that has one which was delivered, and that nobody has."""
        try:
            held = (await cancellable(self._connection.js.stream_info(QUEUE))).state.messages
        except (NatsError, OSError) as error:
            raise NoServer(problem=str(error) or type(error).__name__) from error
        if not held:
            return {}
        states = await queue_states(self._connection)
        if held <= sum(state.waiting + state.running for state in states):
            return {}
        quiet = [state for state in states if not state.running and not state.paused and state.handed_out]
        oldest = {state.route: await self._oldest(state) for state in quiet}
        return {route: sequence for route, sequence in oldest.items() if sequence}

    async def _oldest(self, state: QueueState) -> int:
        waits = subjects.queue_filter(state.route.lane, state.route.queue)
        first = await get_first_after(self._connection, QUEUE, waits, 0)
        return first.sequence if first is not None and first.sequence <= state.handed_out else 0

    async def _make_anew(self, route: Route) -> None:
        js = self._connection.js
        try:
            info = await cancellable(js.consumer_info(QUEUE, route.consumer))
            await cancellable(js.delete_consumer(QUEUE, route.consumer))
            await cancellable(js.add_consumer(QUEUE, config=consumer(route, info.config.ack_wait or 10.0)))
        except NotFoundError:
            log.debug("%s is made anew by somebody else", route.consumer)
        except (NatsError, OSError) as error:
            raise NoServer(problem=str(error) or type(error).__name__) from error
