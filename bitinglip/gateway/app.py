"""The gateway's routes, its life, and the server that runs it."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from bitinglip.errors import InvalidConfig
from bitinglip.gateway import (
    aliases,
    analytics,
    archive,
    artifacts,
    asyncapi,
    audit,
    batches,
    bulk,
    cluster,
    events,
    health,
    history,
    listing,
    modelevents,
    modelfit,
    models,
    modelsearch,
    nodes,
    openapi,
    progress,
    projections,
    queues,
    reports,
    savedqueries,
    schedules,
    streams,
    taskdata,
    tasks,
    timeline,
    uploads,
    wishes,
)
from bitinglip.gateway.addresses import Addresses
from bitinglip.gateway.auth import Guard, check_bind
from bitinglip.gateway.closing import Closing
from bitinglip.gateway.context import Gateway, open_gateway
from bitinglip.gateway.door import Door, Resource, no_route
from bitinglip.gateway.gathering import GatheringProtocol
from bitinglip.gateway.metrics import Metrics
from bitinglip.settings import Settings

KEEP_ALIVE_S = 75
BACKLOG = 2048

ROUTES = [
    Route("/v1/tasks", Resource(POST=tasks.submit, GET=listing.list_tasks)),
    Route("/v1/tasks/{task_id}", Resource(GET=tasks.get_task, DELETE=tasks.cancel)),
    Route("/v1/tasks:cancel", Resource(POST=bulk.cancel)),
    Route("/v1/tasks:retry", Resource(POST=bulk.retry)),
    Route("/v1/tasks:forget", Resource(POST=bulk.forget)),
    Route("/v1/tasks/{task_id}/retry", Resource(POST=tasks.retry)),
    Route("/v1/tasks/{task_id}/params", Resource(GET=taskdata.get_params)),
    Route("/v1/tasks/{task_id}/result", Resource(GET=taskdata.get_result)),
    Route("/v1/tasks/{task_id}/forget", Resource(POST=taskdata.forget)),
    Route("/v1/dead-letters", Resource(GET=listing.dead_letters)),
    Route("/v1/tasks/{task_id}/events", Resource(GET=events.task_events)),
    Route("/v1/tasks/{task_id}/timeline", Resource(GET=timeline.task_timeline)),
    Route("/v1/tasks/{task_id}/proof", Resource(GET=audit.task_proof)),
    Route("/v1/audit", Resource(GET=audit.list_asked)),
    Route("/v1/batches", Resource(POST=batches.create, GET=batches.list_batches)),
    Route("/v1/batches/{batch_id}:close", Resource(POST=batches.close)),
    Route("/v1/batches/{batch_id}:cancel", Resource(POST=batches.cancel)),
    Route("/v1/batches/{batch_id}/events", Resource(GET=progress.batch_events)),
    Route("/v1/batches/{batch_id}/tasks", Resource(POST=batches.add)),
    Route("/v1/batches/{batch_id}", Resource(GET=batches.get_batch)),
    Route("/v1/schedules", Resource(POST=schedules.create, GET=schedules.list_schedules)),
    Route("/v1/schedules/{schedule_id}", Resource(GET=schedules.get_schedule, DELETE=schedules.delete)),
    Route("/v1/schedules/{schedule_id}/pause", Resource(POST=schedules.pause)),
    Route("/v1/schedules/{schedule_id}/resume", Resource(POST=schedules.resume)),
    Route("/v1/events", Resource(GET=streams.stream_events)),
    Route("/v1/artifacts", Resource(POST=artifacts.post_artifact)),
    Route("/v1/artifacts/{digest}", Resource(GET=artifacts.get_artifact)),
    Route("/v1/workers", Resource(GET=cluster.workers)),
    Route("/v1/workers/{worker_id}", Resource(GET=nodes.worker)),
    Route("/v1/workers/{worker_id}/logs", Resource(GET=nodes.logs)),
    *(
        Route(f"/v1/workers/{{worker_id}}/{name}", Resource(POST=nodes.tell_worker(name)))
        for name in ("start", "stop", "restart", "drain", "undrain")
    ),
    Route("/v1/timeline", Resource(GET=history.timeline)),
    Route("/v1/cluster", Resource(GET=cluster.cluster)),
    Route("/v1/nodes", Resource(GET=nodes.nodes)),
    Route("/v1/nodes/{node_id}", Resource(GET=nodes.node)),
    Route("/v1/nodes/{node_id}/status", Resource(GET=nodes.status)),
    Route("/v1/nodes/{node_id}/labels", Resource(POST=nodes.labels)),
    *(
        Route(f"/v1/nodes/{{node_id}}/{name}", Resource(POST=nodes.tell_node(name)))
        for name in ("drain", "undrain", "restart-workers")
    ),
    Route("/v1/nodes/{node_id}/models", Resource(GET=nodes.disk_use)),
    Route("/v1/nodes/{node_id}/models:prune", Resource(POST=nodes.prune)),
    Route("/v1/models", Resource(GET=models.list_models, POST=models.ask)),
    Route("/v1/models:search", Resource(GET=modelsearch.search)),
    # A reference has slashes in it, so what follows one is looked for first.
    Route("/v1/models/{ref:path}/fit", Resource(GET=modelfit.get_fit)),
    Route("/v1/models/{ref:path}/events", Resource(GET=modelevents.model_events)),
    Route("/v1/models/{ref:path}/pin", Resource(POST=models.pin)),
    Route("/v1/models/{ref:path}/unpin", Resource(POST=models.wish(wishes.unpin))),
    Route("/v1/models/{ref:path}/cancel", Resource(POST=models.wish(wishes.cancel))),
    Route("/v1/models/{ref:path}/verify", Resource(POST=models.verify)),
    Route("/v1/models/{ref:path}", Resource(GET=models.get_model, DELETE=models.wish(wishes.remove))),
    Route("/v1/uploads", Resource(POST=uploads.begin, GET=uploads.list_uploads)),
    Route("/v1/uploads/{upload_id}", Resource(GET=uploads.get_upload, DELETE=uploads.delete)),
    Route("/v1/uploads/{upload_id}/files/{path:path}", Resource(PUT=uploads.put_file)),
    Route("/v1/uploads/{upload_id}/complete", Resource(POST=uploads.complete)),
    Route("/v1/aliases", Resource(GET=aliases.list_aliases)),
    Route(
        "/v1/aliases/{alias}",
        Resource(GET=aliases.get_alias, PUT=aliases.set_alias, DELETE=aliases.delete_alias),
    ),
    Route("/v1/aliases/{alias}/rollback", Resource(POST=aliases.rollback)),
    Route("/v1/queues", Resource(GET=queues.queues)),
    Route("/v1/queues:pause", Resource(POST=queues.pause)),
    Route("/v1/queues:resume", Resource(POST=queues.resume)),
    Route("/v1/queues:purge", Resource(POST=queues.purge)),
    Route("/v1/log/archive", Resource(GET=archive.get_archive, POST=archive.post_archive)),
    Route("/v1/log/archive/{file:path}", Resource(GET=archive.get_file)),
    Route("/v1/query", Resource(POST=analytics.query)),
    Route("/v1/queries", Resource(GET=savedqueries.list_queries)),
    Route(
        "/v1/queries/{name}",
        Resource(GET=savedqueries.get_query, PUT=savedqueries.save, DELETE=savedqueries.delete),
    ),
    Route("/v1/queries/{name}/run", Resource(POST=savedqueries.run)),
    Route("/v1/reports/{name}", Resource(GET=reports.get_report)),
    Route("/v1/schema", Resource(GET=analytics.schema)),
    Route("/v1/projections", Resource(GET=projections.list_projections)),
    Route("/v1/projections/rebuild", Resource(POST=projections.rebuild)),
    Route("/v1/projections/snapshot", Resource(POST=projections.snapshot)),
    Route("/healthz", Resource(GET=health.healthz)),
    Route("/readyz", Resource(GET=health.readyz)),
    Route("/metrics", Resource(GET=health.prometheus)),
    Route("/openapi.json", Resource(GET=openapi.openapi)),
    Route("/asyncapi.json", Resource(GET=asyncapi.asyncapi)),
]


class App:
    """The gateway as an ASGI app; its lifespan opens the log and the read model."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closing = Closing()
        self._guard = Guard(settings.gateway)
        self._metrics = Metrics()
        self._router = Router(ROUTES, redirect_slashes=False, default=no_route, lifespan=self.lifespan)
        self._door = Door(self._router, self._guard, self._metrics, Addresses(settings.gateway))
        self._gateway: Gateway | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        scope["gateway"] = self._gateway
        await self._door(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncGenerator[None]:
        """Open the gateway's parts, and close them afterwards.

        Raises:
            NoServer: the event log cannot be reached.
        """
        async with open_gateway(self.settings, self._metrics, self._guard.key_id, self.closing) as gateway:
            self._gateway = gateway
            yield


def create_app(settings: Settings) -> App:
    """Return the gateway as an ASGI app.

    Raises:
        InvalidConfig: it would be open to others without a key.
    """
    check_bind(settings.gateway)
    return App(settings)


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
    async with app.lifespan():
        listener = _listen(settings.gateway.host, settings.gateway.port)
        server = _Server(_config(app), lambda: ready and ready(_url(listener)))
        with _stopped_by(stop, server, app.closing):
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
    def capture_signals(self) -> Generator[None]:
        yield


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=GatheringProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(app.settings.gateway.drain_s),
    )


@contextmanager
def _stopped_by(stop: asyncio.Event | None, server: uvicorn.Server, closing: Closing) -> Generator[None]:
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
