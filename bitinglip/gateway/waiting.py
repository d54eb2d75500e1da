"""Tasks that wait for their model: what it is they wait for, and the model's events beside their own."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bitinglip.gateway import sse
from bitinglip.gateway.admission import failure_of
from bitinglip.gateway.context import Gateway
from bitinglip.gateway.modelevents import life
from bitinglip.models.state import Holding, Revision, Status

WAITING = "model.waiting"
NEAREST: tuple[Status, ...] = ("stored", "fetching", "wanted", "failed", "stopped", "removing", "absent")
"""The statuses, the one that is nearest to a model that runs first."""
UNSERVED = "A node has it, and no worker serves it yet."
UNFETCHED = "No node is to have it any more."


def waiting_for(gateway: Gateway, model: str, kind: str) -> dict[str, Any] | None:
    """Return what a task in a queue waits for, if that is its model; none if a worker serves it, or nothing is known.

    Of several nodes it tells of the one that is nearest to have it. `problem` and `remedy` say what keeps it.
    """
    revision = _awaited(gateway, model, kind)
    if revision is None:
        return None
    holding = min(revision.holdings.values(), key=_distance, default=Holding(""))
    reference = f"{revision.reference}@{revision.revision}"
    problem, remedy = _trouble(revision, holding)
    return {
        "model": reference,
        "node_id": holding.node_id or None,
        "status": holding.status,
        "done_bytes": holding.done_bytes,
        "total_bytes": holding.total_bytes,
        "bytes_per_s": holding.bytes_per_s,
        "left_s": holding.left_s,
        "retry_at": holding.retry_at,
        "code": holding.code,
        "problem": problem,
        "remedy": remedy,
    }


async def events_of_model(gateway: Gateway, model: str, kind: str) -> AsyncGenerator[bytes] | None:
    """Return what happens to the model that a task waits for, without ids; none if it waits for none.

    Raises:
        NoServer, ProjectionBehind: the log cannot be asked.
    """
    if _awaited(gateway, model, kind) is None:
        return None
    await gateway.catalogue.catch_up()
    revision = _awaited(gateway, model, kind)
    return None if revision is None else _frames(gateway, revision, model, kind, gateway.catalogue.applied)


async def _frames(gateway: Gateway, revision: Revision, model: str, kind: str, after: int) -> AsyncGenerator[bytes]:
    if (told := waiting_for(gateway, model, kind)) is not None:
        yield sse.told(WAITING, {"type": WAITING, "data": told})
    async with aclosing(life(gateway, revision.reference, revision.revision, after)) as batches:
        async for batch in batches:
            yield b"".join(sse.unnumbered(message) for message in batch)
            if any(sse.type_of(message) == "model.stored" for message in batch):
                return


def _awaited(gateway: Gateway, model: str, kind: str) -> Revision | None:
    catalogue = gateway.catalogue
    return None if catalogue.serves(model, kind) else catalogue.current(model)


def _trouble(revision: Revision, holding: Holding) -> tuple[str | None, str | None]:
    """Return what keeps a model from coming, and what to do; nothing while it comes."""
    again = f"`bitinglip model download {revision.reference}@{revision.revision}` asks for it anew."
    if holding.status == "stored":
        return UNSERVED, "Look whether a worker of that node runs and may serve it: `bitinglip worker list`."
    if failure_of(revision) is not None:
        return holding.problem, " ".join(filter(None, [holding.remedy, again]))
    if holding.status in {"stopped", "removing", "absent"}:
        return UNFETCHED, again
    return holding.problem, holding.remedy


def _distance(holding: Holding) -> tuple[int, bool, int]:
    return NEAREST.index(holding.status), holding.retry_at is None, -holding.done_bytes
