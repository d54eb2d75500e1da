"""The queues that there are: made when the first task of their kind comes, found by the workers that may serve them.

A queue is its consumer: the server's list of consumers is the list of queues, and no second one can differ from it.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable

import orjson
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from bitinglip.errors import NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.streams import QUEUE, Route, ensure_consumer

ANSWER_S = 5.0


async def open_route(connection: Connection, route: Route, lease_s: float) -> None:
    """Make a queue's consumer, and tell the workers that listen.

    Raises:
        NoServer: the server does not answer.
    """
    await ensure_consumer(connection.js, route, lease_s)
    await connection.publish(subjects.route_opened(route.lane, route.queue), b"")


async def known_routes(connection: Connection) -> list[Route]:
    """Return all queues.

    Raises:
        NoServer: the server does not answer.
    """
    found: list[str] = []
    total = 1
    while len(found) < total:
        page, total = await _names(connection, len(found))
        if not page:
            break
        found += page
    return [Route(*name.split("-", 1)) for name in found if subjects.is_consumer_name(name)]


async def listen_for_routes(connection: Connection, heard: Callable[[Route], None]) -> Subscription:
    """Call the listener for each queue that is opened from now on."""

    def received(subject: bytes, _reply: bytes, _payload: bytes, _headers: bytes | None) -> None:
        heard(Route(*subject.decode().rsplit(".", 2)[1:]))

    return await connection.subscribe_direct(subjects.ROUTES_OPENED, received)


async def _names(connection: Connection, offset: int) -> tuple[list[str], int]:
    """Return a page of consumers' names, and how many there are in all."""
    request = orjson.dumps({"offset": offset})
    try:
        answer = await connection.client.request(f"$JS.API.CONSUMER.NAMES.{QUEUE}", request, timeout=ANSWER_S)
    except (NatsError, TimeoutError) as error:
        raise NoServer(problem=f"listing queues: {error or type(error).__name__}") from error
    told = orjson.loads(answer.data)
    return told.get("consumers") or [], told.get("total", 0)
