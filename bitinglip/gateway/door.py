"""What every request passes through: its id, the guard, errors as problems, the request histogram. Plain ASGI."""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitinglip.errors import BitingLipError, Defect, InternalError
from bitinglip.gateway import problems
from bitinglip.gateway.auth import Guard
from bitinglip.gateway.metrics import Metrics
from bitinglip.ids import Ulids

log = logging.getLogger(__name__)

_SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Door:
    """ASGI middleware around the routes."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics) -> None:
        self._app = app
        self._guard = guard
        self._metrics = metrics
        self._ids = Ulids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; anything but HTTP goes on as it is."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        visit = _Visit(self._request_id(headers), send)
        scope["request_id"] = visit.request_id
        started = time.perf_counter()
        try:
            await self._enter(scope, headers, receive, visit)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.observe_request(method, route, visit.status, time.perf_counter() - started)

    async def _enter(self, scope: Scope, headers: Headers, receive: Receive, visit: _Visit) -> None:
        try:
            self._guard.check(scope["path"], headers)
            await self._app(scope, receive, visit.send)
        except Exception as error:
            report(error, visit.request_id)
            if visit.status:
                raise
            shown = error if isinstance(error, BitingLipError) else InternalError()
            await problems.answer(shown, visit.request_id)(scope, receive, visit.send)

    def _request_id(self, headers: Headers) -> str:
        given = headers.get("x-request-id")
        return given if given is not None and _SANE_ID.fullmatch(given) else self._ids()


class _Visit:
    """One request's answer on its way out."""

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


def report(error: Exception, request_id: str) -> None:
    """Log an error: ours with its traceback, the caller's at debug level."""
    if not isinstance(error, BitingLipError) or isinstance(error, Defect):
        log.error("request %s failed", request_id, exc_info=error)
    elif error.status >= 500:
        log.warning("request %s: %s", request_id, error)
    else:
        log.debug("request %s: %s", request_id, error)
