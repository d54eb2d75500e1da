"""Stream and consumer declarations, and applying them: create or update, and refuse what cannot be changed in place.

Least server version: 2.12 (message schedules, ADR-51; per-message TTL, ADR-43; direct batch get, ADR-31).
"""

# nats-py leaves much of itself untyped.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from nats.errors import Error as NatsError
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StoreCompression,
    StreamConfig,
    StreamSource,
    SubjectTransform,
)
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError, ServiceUnavailableError

from bitinglip.errors import IncompatibleStream, NoServer, NotPermitted, ServerTooNarrow, ServerTooOld
from bitinglip.events import subjects
from bitinglip.settings import Nats

log = logging.getLogger(__name__)

TASKS = "TASKS"
QUEUE = "QUEUE"
WORKERS = "WORKERS"
MODELS = "MODELS"
SCHEDULES = "SCHEDULES"
LEDGER = "LEDGER"
ARTIFACTS_BUCKET = "artifacts"
ARTIFACTS_INDEX = "artifact_index"
ARCHIVE_BUCKET = "archive"
SNAPSHOTS_BUCKET = "snapshots"
KEYS_BUCKET = "task_keys"
KEYS_STREAM = f"KV_{KEYS_BUCKET}"

LEAST_SERVER = (2, 12)
LEAST_PAYLOAD_BYTES = 655_360
"""Half a megabyte, which inputs and results may be (`log.inline_max_bytes`), and what stands around them."""
FIXED = ("retention", "storage")
"""What the server refuses to change on a stream that exists."""
QUEUES_MOST = 100_000
"""Consumers of QUEUE, which are the queues; unless it is told, the server (2.15) allows a stream no more than 1,000."""
FULL_CODES = frozenset({10023, 10047, 10077, 10110, 10122})
"""The server's codes for: there is no room."""
UNAVAILABLE = 503
"""The server's code for: not now. A cluster answers so while it has no leader."""
NO_LEADER = 10008
"""The server's code for: the cluster as a whole has no leader; a stream that has none does not answer at all."""
PATIENCE_S = 30.0
"""How long a start waits for leaders: a stream whose leader was killed had none for 4 to 7 s (benchmarks/README.md)."""
PAUSE_S = 0.5


Unanswered = Callable[[str], NoServer]
"""Tells what it means that no answer came."""
Patient = Callable[[], bool]
"""Tells whether a leader is still waited for."""


@dataclass(frozen=True, slots=True)
class Route:
    """Where the work for one model in one lane waits."""

    lane: str
    queue: str

    @property
    def consumer(self) -> str:
        """Name of the durable consumer."""
        return subjects.consumer_name(self.lane, self.queue)


def declarations(settings: Nats) -> list[StreamConfig]:
    """Return the streams, in the order in which they must be made."""
    common: dict[str, Any] = {
        "storage": StorageType.FILE,
        "num_replicas": settings.replicas,
        "compression": StoreCompression.S2,
        "allow_direct": True,
        "allow_msg_ttl": True,
    }
    kept: dict[str, Any] = {**common, "retention": RetentionPolicy.LIMITS, "deny_delete": True}
    return [
        StreamConfig(
            name=TASKS,
            description="Every fact about every task: the truth.",
            subjects=[subjects.TASKS, subjects.BATCHES, subjects.TIMERS, subjects.DUES],
            republish=RePublish(src=subjects.TASKS, dest=subjects.LIVE_TASKS),
            allow_msg_schedules=True,  # with this the server clears `deny_purge`: see docs/decisions/0002
            allow_atomic=True,
            **kept,
        ),
        StreamConfig(
            name=QUEUE,
            description="Work that is ready to run, copied from TASKS by the server.",
            sources=[_ready_work()],
            retention=RetentionPolicy.WORK_QUEUE,
            max_consumers=QUEUES_MOST,
            **common,
        ),
        StreamConfig(
            name=WORKERS,
            description="Facts about workers and nodes.",
            subjects=list(subjects.WORKERS),
            deny_purge=True,
            **kept,
        ),
        StreamConfig(
            name=MODELS, description="Facts about models.", subjects=[subjects.MODELS], deny_purge=True, **kept
        ),
        StreamConfig(
            name=SCHEDULES,
            description="Facts about schedules, and their alarms.",
            subjects=[subjects.SCHEDULES, subjects.ALARMS],
            allow_msg_schedules=True,  # as for TASKS
            **kept,
        ),
        StreamConfig(
            name=LEDGER,
            description="Facts about the log itself, and saved queries.",
            subjects=[subjects.LEDGER, subjects.QUERIES],
            deny_purge=True,
            **kept,
        ),
    ]


def consumer(route: Route, lease_s: float) -> ConsumerConfig:
    """Return the durable pull consumer of a route; its ack wait is the lease."""
    return ConsumerConfig(
        durable_name=route.consumer,
        filter_subject=subjects.queue_filter(route.lane, route.queue),
        ack_policy=AckPolicy.EXPLICIT,
        deliver_policy=DeliverPolicy.ALL,
        ack_wait=lease_s,
        max_deliver=-1,
        max_ack_pending=65_536,
        max_waiting=4096,
    )


async def ensure_streams(js: JetStreamContext, settings: Nats, unanswered: Unanswered) -> None:
    """Make the streams, or bring those that exist up to date; calling it again changes nothing.

    A stream that has no leader yet is waited for, and told of.

    Args:
        js: Of the connection.
        settings: How many copies each stream has.
        unanswered: What it means that no answer came.

    Raises:
        IncompatibleStream: one exists with settings that cannot be changed in place.
        NoServer: the server does not answer, or a stream has no leader after `PATIENCE_S`.
        NotPermitted: this user may not ask for them.
    """
    led_in_time = partial(led, patient=within(PATIENCE_S), unanswered=unanswered)
    for declared in declarations(settings):
        await led_in_time(f"The stream {declared.name}", lambda declared=declared: _ensure_stream(js, declared))
    buckets = (f"OBJ_{ARTIFACTS_BUCKET}", f"KV_{ARTIFACTS_INDEX}", KEYS_STREAM)
    buckets += (f"OBJ_{ARCHIVE_BUCKET}", f"OBJ_{SNAPSHOTS_BUCKET}")
    for name in buckets if settings.replicas > 1 else ():
        await led_in_time(f"The stream {name}", lambda name=name: _ensure_replicas(js, name, settings.replicas))


def within(seconds: float) -> Patient:
    """Wait for so long, from now on."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() < until


async def led(name: str, declare: Callable[[], Awaitable[object]], patient: Patient, unanswered: Unanswered) -> None:
    """Declare a stream or a consumer, again and again, as long as nobody answers: it may have no leader.

    Raises:
        IncompatibleStream: it exists with settings that cannot be changed in place.
        NoServer: the server does not answer.
        NotPermitted: this user may not ask for it.
    """
    while True:
        with _errors_named(name):
            try:
                await declare()
            except (TimeoutError, ServiceUnavailableError) as error:
                meaning = unanswered(f"declaring {name}: {error or type(error).__name__}")
                if isinstance(meaning, NotPermitted):
                    raise meaning from error
                code = error.err_code if isinstance(error, ServiceUnavailableError) else NO_LEADER
                if code != NO_LEADER or not patient():
                    raise
            else:
                return
        log.warning("%s does not answer, as one that has no leader; it is waited for", name)
        await asyncio.sleep(PAUSE_S)


async def ensure_consumer(js: JetStreamContext, route: Route, lease_s: float) -> None:
    """Make a route's durable consumer, or bring it up to date.

    Raises:
        IncompatibleStream: it exists with settings that cannot be changed in place.
        NoServer: the server does not answer.
    """
    with _errors_named(f"The consumer {route.consumer}"):
        await js.add_consumer(QUEUE, config=consumer(route, lease_s))


async def ensure_consumers(
    js: JetStreamContext, routes: Iterable[Route], lease_s: float, patient: Patient, unanswered: Unanswered
) -> None:
    """Make routes' durable consumers, or bring them up to date; those that have no leader are waited for (see `led`).

    Raises:
        IncompatibleStream: one exists with settings that cannot be changed in place.
        NoServer: the server does not answer.
        NotPermitted: this user may not ask for one.
    """
    for route in routes:
        declare = partial(js.add_consumer, QUEUE, config=consumer(route, lease_s))
        await led(f"The consumer {route.consumer}", declare, patient, unanswered)


async def has_consumer(js: JetStreamContext, route: Route) -> bool:
    """Tell whether a route's durable consumer is there.

    Raises:
        NoServer: the server does not answer.
    """
    try:
        await js.consumer_info(QUEUE, route.consumer)
    except NotFoundError:
        return False
    except (NatsError, OSError) as error:
        raise NoServer(problem=str(error) or type(error).__name__) from error
    return True


def check_server(*version: int, max_payload: int) -> None:
    """Refuse a server that lacks what the log needs.

    Raises:
        ServerTooOld: it is older than 2.12.
        ServerTooNarrow: it takes no message of `LEAST_PAYLOAD_BYTES`.
    """
    if version < LEAST_SERVER:
        raise ServerTooOld(version=".".join(map(str, version)), least=".".join(map(str, LEAST_SERVER)))
    if max_payload < LEAST_PAYLOAD_BYTES:
        raise ServerTooNarrow(limit_bytes=max_payload, least_bytes=LEAST_PAYLOAD_BYTES)


async def _ensure_stream(js: JetStreamContext, declared: StreamConfig) -> None:
    assert declared.name is not None
    try:
        existing = (await js.stream_info(declared.name)).config
    except NotFoundError:
        await js.add_stream(declared)
        return
    for setting in FIXED:
        if (found := getattr(existing, setting)) != getattr(declared, setting):
            raise IncompatibleStream(
                name=f"The stream {declared.name}",
                setting=f"{setting} = {found}",
                problem="it was made by something else",
            )
    # A process that knows of fewer copies than there are must not drop the others.
    wanted = declared.evolve(num_replicas=max(existing.num_replicas or 1, declared.num_replicas or 1))
    if declared.sources and existing.sources and existing.sources[0].opt_start_seq:
        # A queue that was restored: what came before is in it already (see `backup`).
        begin = existing.sources[0].opt_start_seq
        wanted = wanted.evolve(sources=[source.evolve(opt_start_seq=begin) for source in declared.sources])
    try:
        await js.update_stream(wanted)
    except APIError:
        if existing.max_consumers == wanted.max_consumers:
            raise
        # Older servers (2.12) do not change this one, and allow as many as there are.
        await js.update_stream(wanted.evolve(max_consumers=existing.max_consumers))


async def _ensure_replicas(js: JetStreamContext, name: str, least: int) -> None:
    with suppress(NotFoundError):
        existing = (await js.stream_info(name)).config
        if (existing.num_replicas or 1) < least:
            await js.update_stream(existing.evolve(num_replicas=least))


@contextmanager
def _errors_named(name: str) -> Generator[None]:
    try:
        yield
    except APIError as error:
        told = error.description or str(error)
        if error.code == UNAVAILABLE:
            raise NoServer(problem=f"declaring {name}: {told}") from error
        raise IncompatibleStream(name=name, setting="settings", problem=told) from error
    except NatsError as error:
        raise NoServer(problem=f"declaring {name}: {error or type(error).__name__}") from error


def _ready_work() -> StreamSource:
    destination = "bl.queue.{{wildcard(2)}}.{{wildcard(3)}}.{{wildcard(1)}}"
    return StreamSource(
        name=TASKS,
        subject_transforms=[
            SubjectTransform(src=f"bl.task.*.{event}.*.*", dest=destination) for event in ("submitted", "queued")
        ],
    )
