"""Whether a model fits on this cluster's nodes, and which of them is to have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import ModelDoesNotFit
from bitinglip.gateway import liveness, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.describing import described
from bitinglip.gateway.responses import json
from bitinglip.models.placement import CPU, Asked, Card, Machine, Refusal, Verdict, best, choose, fit
from bitinglip.models.state import Revision, Status
from bitinglip.projections.rows import NodeRow

RUNS: frozenset[Verdict] = frozenset({"fits", "unknown"})
WORDS: dict[Verdict, str] = {
    "smaller": "in a smaller precision it would",
    "quantised": "quantised it would",
    "spread": "over two cards it would",
    "too_big": "nor in any other way",
}


async def get_fit(request: Request) -> Response:
    """Answer `GET /v1/models/{ref}/fit`: how it fits on each node, and which one would be chosen."""
    gateway = gateway_of(request)
    requests.only(request)
    revision = await described(gateway, request.path_params["ref"])
    asked, machines = asked_of(revision), await machines_of(gateway)
    fits, chosen = fit(asked, machines), choose(asked, machines)
    refusal = chosen if isinstance(chosen, Refusal) else None
    return json({
        "reference": revision.reference,
        "revision": revision.revision,
        "kind": revision.described.kind if revision.described else None,
        "size_bytes": asked.size_bytes,
        "need_bytes": dict(asked.need_bytes),
        "verdict": best(fits),
        "chosen": None if refusal else chosen,
        "problem": refusal and refusal.problem,
        "instead": refusal and refusal.instead,
        "nodes": [asdict(each) for each in fits],
    })  # fmt: skip


async def chosen_node(gateway: Gateway, revision: Revision) -> str:
    """Return the node that is to fetch a model for which none was named.

    Raises:
        ModelDoesNotFit: none can; the error says why, and what to do instead.
    """
    chosen = choose(asked_of(revision), await machines_of(gateway))
    if isinstance(chosen, Refusal):
        reference = f"{revision.reference}@{revision.revision}"
        raise ModelDoesNotFit(reference=reference, problem=chosen.problem, instead=chosen.instead)
    return chosen


async def misfits(gateway: Gateway, revision: Revision, nodes: list[str]) -> list[str]:
    """Return what speaks against nodes that were named: it is done all the same."""
    found = [f"No engine takes {revision.reference}."] if revision.described and not revision.described.kind else []
    fits = {each.node_id: each for each in fit(asked_of(revision), await machines_of(gateway))}
    for node_id in nodes:
        if node_id in fits and fits[node_id].verdict not in RUNS:
            found.append(f"It does not fit on {node_id} as it is ({WORDS[fits[node_id].verdict]}).")
        if node_id in fits and not fits[node_id].room:
            found.append(f"The disk of {node_id} is too full, unless other models make room.")
    return found


async def machines_of(gateway: Gateway) -> list[Machine]:
    """Return the nodes as they matter to placement."""
    return [_machine(row) for row in await liveness.nodes(gateway)]


def asked_of(revision: Revision) -> Asked:
    """Return what is to be placed."""
    told = revision.described
    holdings: dict[str, Status] = {node_id: holding.status for node_id, holding in revision.holdings.items()}
    size = told.size_bytes if told else max((event.size_bytes or 0 for event in revision.registered), default=0)
    return Asked(told.need_bytes if told else {}, told.dtype if told else None, size, holdings)


def mark(need_bytes: Mapping[str, int], dtype: str | None, size_bytes: int, machines: list[Machine]) -> Verdict | None:
    """Return how a model that is not here would fit at best; none if there is no node."""
    if not any(machine.online for machine in machines):
        return None
    return best(fit(Asked(need_bytes, dtype, size_bytes, {}), machines))


def _machine(row: NodeRow) -> Machine:
    devices: list[dict[str, Any]] = [each for each in row.devices if each.get("memory_total_bytes")]
    cards = tuple(Card(each["device"], each["memory_total_bytes"]) for each in devices if not each.get("lost"))
    if not cards and row.memory_total_bytes is not None:
        cards = (Card(CPU, row.memory_total_bytes),)
    return Machine(row.node_id, cards, row.disk_free_bytes, row.state == "online")
