"""The queues that tasks are put into, made before their first task is there."""

from __future__ import annotations

import asyncio

from bitinglip.errors import TooManyQueues
from bitinglip.events.connection import Connection
from bitinglip.events.routes import known_routes, open_route
from bitinglip.events.streams import Route
from bitinglip.events.task import TaskSubmitted
from bitinglip.tasks.routing import is_common, route_of


class OpenQueues:
    """Remembers which queues there are. Those for anybody's work are made by the workers, which serve them anyway."""

    def __init__(self, connection: Connection, lease_s: float, most: int) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._most = most
        self._known: set[Route] = set()
        self._opening = asyncio.Lock()

    async def ensure(self, task: TaskSubmitted) -> None:
        """See to it that the task's queue is there, for the workers to find.

        Raises:
            TooManyQueues: it would be one more than there may be.
            NoServer: the server does not answer.
        """
        if is_common(task):
            return
        route = Route(*route_of(task))
        if route not in self._known:
            async with self._opening:
                await self._open(route)

    async def _open(self, route: Route) -> None:
        if route in self._known:
            return
        self._known = set(await known_routes(self._connection))
        if route in self._known:
            return
        if len(self._known) >= self._most:
            raise TooManyQueues(most=self._most)
        await open_route(self._connection, route, self._lease_s)
        self._known.add(route)
