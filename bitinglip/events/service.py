"""A NATS service (`nats micro`): commands to a running process, as requests; and asking one.

A command's body and answer are JSON objects; headers say on whose behalf it is sent. What goes wrong comes back as the
error that it is, by its code.
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.micro.request import Request
from nats.micro.service import Service, ServiceConfig

from bitinglip.errors import BitingLipError, CommandRefused, NodeSilent, NoServer
from bitinglip.events import actor
from bitinglip.events.connection import Connection

log = logging.getLogger(__name__)

Command = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
PROBLEM = "Nats-Service-Error"


class CommandService:
    """The commands that a process takes, at their subjects."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @classmethod
    async def open(
        cls, connection: Connection, name: str, version: str, description: str, metadata: Mapping[str, str]
    ) -> CommandService:
        """Announce the service.

        Raises:
            NoServer: the connection is away.
        """
        config = ServiceConfig(name=name, version=version, description=description, metadata=dict(metadata))
        service = Service(connection.client, config)
        try:
            await service.start()
        except NatsError as error:
            raise NoServer(problem=str(error) or type(error).__name__) from error
        return cls(service)

    async def take(self, name: str, subject: str, command: Command) -> None:
        """Take one more command."""

        async def handle(request: Request) -> None:
            try:
                body = orjson.loads(request.data or b"{}")
                with actor.acting(actor.of_headers(request.headers)):
                    answer = await command(body)
                await request.respond(orjson.dumps(answer))
            except BitingLipError as error:
                await request.respond_error(str(error.status), str(error), _problem(error))
            except (orjson.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
                refused = CommandRefused(problem=f"the request is not understood ({error})")
                await request.respond_error("400", str(refused), _problem(refused))

        await self._service.add_endpoint(name=name, subject=subject, handler=handle)

    async def close(self) -> None:
        """Take no more."""
        try:
            await self._service.stop()
        except NatsError as error:
            log.debug("the service ended with its connection: %s", error)


async def command(
    connection: Connection, node_id: str, subject: str, body: Mapping[str, Any], timeout_s: float
) -> dict[str, Any]:
    """Send a command to a node, and return its answer.

    Raises:
        NodeSilent: nobody answers there in time.
        CommandRefused: the node refuses, and says why.
        NoServer: the connection is away.
    """
    if not connection.connected:
        raise NoServer(problem="the connection is away")
    try:
        answer = await connection.client.request(
            subject, orjson.dumps(dict(body)), timeout=timeout_s, headers=actor.to_headers(actor.current())
        )
    except NoRespondersError as error:
        raise NodeSilent(node_id=node_id, problem="no agent of it is connected") from error
    except TimeoutError as error:
        raise NodeSilent(node_id=node_id, problem=f"no answer within {timeout_s:g} s") from error
    except NatsError as error:
        raise NoServer(problem=str(error) or type(error).__name__) from error
    if PROBLEM in (answer.headers or {}):
        raise CommandRefused(problem=str(orjson.loads(answer.data)["problem"]))
    return orjson.loads(answer.data)


def _problem(error: BitingLipError) -> bytes:
    problem = error.problem if isinstance(error, CommandRefused) else str(error).rstrip(".")
    return orjson.dumps({"code": error.code, "problem": problem, "remedy": error.remedy})
