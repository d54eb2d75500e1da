"""Unavailable: time can act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.root import BitingLipError


@dataclass(eq=False, kw_only=True)
class Unavailable(BitingLipError):
    """Not now; the same request may work later."""

    code, status, exit_code = "unavailable", 503, 4
    template = "The service is not available right now."
    remedy = "Try again in a moment."
    retry_after_s: int = 1


@dataclass(eq=False, kw_only=True)
class NoServer(Unavailable):
    """The NATS server does not answer."""

    code = "no_server"
    template = "The event log cannot be reached: {problem}"
    remedy = "Look whether nats-server runs (`bitinglip doctor`); the request can be sent again as it is."
    problem: str
    retry_after_s: int = 2


@dataclass(eq=False, kw_only=True)
class NotPermitted(NoServer):
    """The NATS server does not let this process do what it has to."""

    code = "not_permitted"
    template = "The NATS server does not permit it: {problem}"
    remedy = "Give the user that `nats.url` names the permissions that `nats.conf` has for this part."


@dataclass(eq=False, kw_only=True)
class StreamFull(Unavailable):
    """The stream has reached one of its limits; nothing was accepted."""

    code = "stream_full"
    template = "The event log is full: {problem}"
    remedy = "Give the server more room (`nats.max_store_bytes`), or let the log's window be archived."
    problem: str
    retry_after_s: int = 30


@dataclass(eq=False, kw_only=True)
class ProjectionBehind(Unavailable):
    """The read model has not yet seen an event that the answer must contain."""

    code = "projection_behind"
    template = "The read model has not reached sequence {sequence} yet (it is at {applied})."
    sequence: int
    applied: int


@dataclass(eq=False, kw_only=True)
class ProjectionBuilding(Unavailable):
    """A table that the answer needs is being made for the first time."""

    code = "projection_building"
    template = "The projection {projection} is being made from the log; it is at {applied} of {last} events."
    remedy = "Wait until it is made: `GET /v1/projections` tells how far it is."
    projection: str
    applied: int
    last: int
    retry_after_s: int = 5


@dataclass(eq=False, kw_only=True)
class ReadModelBroken(Unavailable):
    """The read model's file is damaged, or its database has stopped; it is opened or made anew."""

    code = "read_model_broken"
    template = "The read model is out of order: {problem}"
    remedy = "It mends itself: its file is opened again, or made anew from the log; see the gateway's log."
    problem: str
    retry_after_s: int = 5


@dataclass(eq=False, kw_only=True)
class RebuildFailed(Unavailable):
    """A new file of the read model could not be filled; the old one serves on."""

    code = "rebuild_failed"
    template = "The read model could not be made anew: {problem}"
    remedy = "The old one serves on. Ask again; if it repeats, see the gateway's log."
    problem: str
    retry_after_s: int = 5


@dataclass(eq=False, kw_only=True)
class GatewayUnreachable(Unavailable):
    """The CLI found no gateway."""

    code = "gateway_unreachable"
    template = "No gateway answers at {url}: {problem}"
    remedy = "Start one with `bitinglip up`, or name another with --url or BITINGLIP_GATEWAY_URL."
    url: str
    problem: str


@dataclass(eq=False, kw_only=True)
class NodeSilent(Unavailable):
    """A node's agent does not answer; its workers may go on."""

    code = "node_silent"
    template = "The node {node_id} does not answer: {problem}."
    remedy = "Look whether its agent runs (`bitinglip node` on that machine); a worker without one takes no commands."
    node_id: str
    problem: str
    retry_after_s: int = 5


@dataclass(eq=False, kw_only=True)
class DeviceLost(Unavailable):
    """A worker's card has vanished, or answers no more."""

    code = "device_lost"
    template = "The device {device} is lost: {reason}."
    remedy = (
        "Look at the card: `nvidia-smi` or `rocm-smi`, `dmesg`, its riser and power cables. Reset it or restart the "
        "machine, then start the worker again."
    )
    device: str
    reason: str


@dataclass(eq=False, kw_only=True)
class ArchiveDamaged(Unavailable):
    """A file of the archive is not what the index says."""

    code = "archive_damaged"
    template = "The archive's file {file} cannot be used: {problem}."
    remedy = "Bring it back from a backup (`bitinglip events archive --output` writes copies, with digests)."
    file: str
    problem: str
    retry_after_s: int = 60


@dataclass(eq=False, kw_only=True)
class QueriesBusy(Unavailable):
    """Other queries take all the threads that there are for them."""

    code = "queries_busy"
    template = "{most} queries run or wait already."
    remedy = "Send it again in a moment; what is running ends within `projections.query_timeout_s`."
    most: int
    retry_after_s: int = 2
