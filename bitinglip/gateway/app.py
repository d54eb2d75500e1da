"""The gateway's routes, its life, and the server that runs it."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from bitinglip.errors import InvalidConfig, MethodNotAllowed, RouteNotFound
from bitinglip.gateway import analytics, artifacts, cluster, events, health, listing, openapi, problems, streams, tasks
from bitinglip.gateway.auth import Guard, check_bind
from bitinglip.gateway.context import open_gateway
from bitinglip.gateway.door import Door
from bitinglip.gateway.metrics import Metrics
from bitinglip.settings import Settings

KEEP_ALIVE_S = 75
BACKLOG = 2048

ROUTES = [
    Route("/v1/tasks", tasks.submit, methods=["POST"]),
    Route("/v1/tasks", listing.list_tasks, methods=["GET"]),
    Route("/v1/tasks/{task_id}", tasks.get_task, methods=["GET"]),
    Route("/v1/tasks/{task_id}", tasks.cancel, methods=["DELETE"]),
    Route("/v1/tasks/{task_id}/events", events.task_events, methods=["GET"]),
    Route("/v1/events", streams.stream_events, methods=["GET"]),
    Route("/v1/artifacts/{digest}", artifacts.get_artifact, methods=["GET"]),
    Route("/v1/workers", cluster.workers, methods=["GET"]),
    Route("/v1/models", cluster.models, methods=["GET"]),
    Route("/v1/queues", cluster.queues, methods=["GET"]),
    Route("/v1/query", analytics.query, methods=["POST"]),
    Route("/v1/schema", analytics.schema, methods=["GET"]),
    Route("/v1/projections/rebuild", analytics.rebuild, methods=["POST"]),
    Route("/healthz", health.healthz, methods=["GET"]),
    Route("/readyz", health.readyz, methods=["GET"]),
    Route("/metrics", health.prometheus, methods=["GET"]),
    Route("/openapi.json", openapi.openapi, methods=["GET"]),
]


def create_app(settings: Settings) -> Starlette:
    """Return the gateway as an ASGI app; its lifespan opens the log and the read model.

    Raises:
        InvalidConfig: it would be open to others without a key.
    """
    check_bind(settings.gateway)
    guard, metrics, closing = Guard(settings.gateway), Metrics(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with open_gateway(settings, metrics, guard.key_id, closing) as gateway:
            app.state.gateway = gateway
            yield

    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(Door, guard=guard, metrics=metrics)],
        exception_handlers={HTTPException: _refuse_route},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.closing = closing
    return app


async def serve(
    settings: Settings, ready: Callable[[str], None] | None = None, stop: asyncio.Event | None = None
) -> None:
    """Run a gateway until `stop` is set; without `stop`, until SIGTERM or SIGINT. `ready` is called with its URL.

    On the way out event streams are closed, and open requests get `gateway.drain_s` seconds to end.

    Raises:
        InvalidConfig: it would be open to others without a key, or the address cannot be bound.
        NoServer: the event log cannot be reached.
    """
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        listener = _listen(settings.gateway.host, settings.gateway.port)
        server = _Server(_config(app, settings), lambda: ready and ready(_url(listener)))
        with _stopped_by(stop, server, app.state.closing):
            await server.serve([listener])


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals alone and says when it listens."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.gateway.drain_s),
    )


@contextmanager
def _stopped_by(stop: asyncio.Event | None, server: uvicorn.Server, closing: asyncio.Event) -> Iterator[None]:
    """Let the server end when it is told to: by the event, or by a signal."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        closing.set()
        server.should_exit = True

    async def watch(stop: asyncio.Event) -> None:
        await stop.wait()
        end()

    if stop is not None:
        watcher = loop.create_task(watch(stop))
        yield
        watcher.cancel()
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidConfig(problem=f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _refuse_route(request: Request, error: Exception) -> Response:
    """Answer a request that no route takes."""
    methods = {
        method
        for route in ROUTES
        if route.methods and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods
    }
    path, request_id = request.url.path, request.scope["request_id"]
    if not methods:
        return problems.answer(RouteNotFound(path=path), request_id)
    refused = MethodNotAllowed(method=request.method, path=path)
    return problems.answer(refused, request_id, {"Allow": ", ".join(sorted(methods))})
