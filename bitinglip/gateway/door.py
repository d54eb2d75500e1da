"""What every request passes through: its id, the guard, errors as problems, the request histogram. Plain ASGI.

It stands where Starlette's own stack of error middleware would: one layer instead of four, on a path that is taken
thousands of times a second.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.errors import BitingLipError, Defect, InternalError, MethodNotAllowed, RouteNotFound
from bitinglip.events.actor import Actor, acting
from bitinglip.gateway import problems
from bitinglip.gateway.addresses import Addresses
from bitinglip.gateway.auth import Guard
from bitinglip.gateway.metrics import Metrics
from bitinglip.ids import Ulids

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


class Resource:
    """What is at one path: a handler for each method."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers | ({"HEAD": handlers["GET"]} if "GET" in handlers else {})

    @property
    def methods(self) -> list[str]:
        """The methods that it takes."""
        return sorted(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            MethodNotAllowed: there is no handler for its method.
        """
        handler = self._handlers.get(scope["method"])
        if handler is None:
            scope["allow"] = ", ".join(self.methods)
            raise MethodNotAllowed(method=scope["method"][:20], path=scope["path"])
        response = await handler(Request(scope, receive, send))
        await response(scope, receive, send)


class Door:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics, addresses: Addresses) -> None:
        self._app = app
        self._guard = guard
        self._metrics = metrics
        self._addresses = addresses
        self._ids = Ulids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP goes on as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        scope["header_map"] = headers
        scope["request_id"] = request_id = self._request_id(headers)
        visit = _Visit(request_id, send)
        started = time.perf_counter()
        try:
            await self._enter(scope, headers, receive, visit)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.observe_request(method, route, visit.status, time.perf_counter() - started)

    async def _enter(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, visit: _Visit) -> None:
        try:
            self._guard.check(scope["path"], headers)
            address = self._addresses.recorded(scope["client"], headers)
            with acting(Actor(self._guard.key_id, address, visit.request_id)):
                await self._app(scope, receive, visit.send)
        except Exception as error:
            report(error, visit.request_id)
            if visit.status:
                raise
            shown = error if isinstance(error, BitingLipError) else InternalError()
            allow = {"Allow": scope["allow"]} if "allow" in scope else None
            await problems.answer(shown, visit.request_id, allow)(scope, receive, visit.send)

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        return self._ids() if given is None or _SANE_ID.fullmatch(given) is None else given.decode()


class _Visit:
    """One request's answer on its way out."""

    __slots__ = ("_send", "request_id", "status")

    def __init__(self, request_id: str, send: Send) -> None:
        self.request_id = request_id
        self.status = 0
        """Status that was sent; 0 before."""
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.request_id.encode())]
        await self._send(message)


async def no_route(scope: Scope, _receive: Receive, _send: Send) -> None:
    """Refuse a request that no route takes.

    Raises:
        RouteNotFound: always.
    """
    raise RouteNotFound(path=scope["path"])


def report(error: Exception, request_id: str) -> None:
    """Log an error: ours with its traceback, the caller's at debug level."""
    if not isinstance(error, BitingLipError) or isinstance(error, Defect):
        log.error("request %s failed", request_id, exc_info=error)
    elif error.status >= 500:
        log.warning("request %s: %s", request_id, error)
    else:
        log.debug("request %s: %s", request_id, error)
