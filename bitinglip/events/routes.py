"""The queues that there are: made when the first task of their kind comes, found by the workers that may serve them.

A queue is its consumer: the server's list of consumers is the list of queues, and no second one can differ from it.
"""

from __future__ import annotations

from collections.abc import Callable

from nats.aio.subscription import Subscription

from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import queue_names
from bitinglip.events.pauses import paused_lanes, settle_pauses
from bitinglip.events.streams import Route, ensure_consumer, has_consumer


async def open_route(connection: Connection, route: Route, lease_s: float) -> None:
    """Make a queue's consumer if it is not there, paused if its model is, and tell the workers that listen.

    One that is there keeps the lease that its workers gave it.

    Raises:
        NoServer: the server does not answer.
    """
    if not await has_consumer(connection.js, route):
        await ensure_consumer(connection.js, route, lease_s)
    model, _ = subjects.decode_queue(route.queue)
    if await paused_lanes(connection, model):
        await settle_pauses(connection, model)
    await connection.publish(subjects.route_opened(route.lane, route.queue), b"")


async def known_routes(connection: Connection) -> list[Route]:
    """Return all queues.

    Raises:
        NoServer: the server does not answer.
    """
    return await queue_names(connection)


async def listen_for_routes(connection: Connection, heard: Callable[[Route], None]) -> Subscription:
    """Call the listener for each queue that is opened from now on."""

    def received(subject: bytes, _reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
        route = Route(*subject.decode().rsplit(".", 2)[1:])
        if subjects.is_consumer_name(route.consumer):
            heard(route)

    return await connection.subscribe_direct(subjects.ROUTES_OPENED, received)
