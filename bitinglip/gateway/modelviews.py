"""How models are shown: in a shape that programs made for OpenAI's API can read, with what we know besides."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bitinglip.events.model import ModelRegistered
from bitinglip.gateway.knownmodels import KnownModels
from bitinglip.models.state import Holding, Revision
from bitinglip.projections.rows import ModelUsageRow

Usage = Mapping[tuple[str, str | None], ModelUsageRow]
LOCAL = "local"
"""Owner of a model whose name tells none."""


REGISTERED = ("architecture", "size_bytes", "context_tokens")
DESCRIBED = {*REGISTERED, "parameters", "dtype", "need_bytes", "licence", "tags", "gated", "source", "parts"}


def listed(catalogue: KnownModels, usage: Usage) -> list[dict[str, Any]]:
    """Return all models: each revision that is known, and what workers can run without one; by name."""
    shown = [summary(catalogue, revision, usage) for revision in catalogue.models.revisions.values()]
    named = {each["id"] for each in shown}
    bare: dict[str, list[ModelRegistered]] = defaultdict(list)
    for event in catalogue.served():
        if event.reference not in named and event.revision is None:
            bare[event.reference].append(event)
    shown += [_bare(catalogue, events, usage) for events in bare.values()]
    return sorted(shown, key=lambda each: (each["reference"], each["id"]))


def summary(catalogue: KnownModels, revision: Revision, usage: Usage) -> dict[str, Any]:
    """Return a revision as the list has it."""
    kinds = kinds_of(revision)
    current = catalogue.current(revision.reference)
    alone = current is not None and current.revision == revision.revision
    return {
        **_head(catalogue, revision.reference, revision.revision, usage),
        "id": revision.reference if alone else f"{revision.reference}@{revision.revision}",
        "kind": next(iter(kinds), None),
        "kinds": kinds,
        **_told(revision),
        "aliases": catalogue.aliases_of(revision.reference, revision.revision),
        "nodes": by_status(revision),
        "pinned": sorted(node_id for node_id, holding in revision.holdings.items() if holding.pinned),
        "served": bool(revision.registered) or (alone and catalogue.is_served(revision.reference)),
    }


def kinds_of(revision: Revision) -> list[str]:
    """Return the kinds of task that a revision serves."""
    described = revision.described
    own = [described.kind] if described is not None and described.kind is not None else []
    return sorted({event.kind for event in revision.registered} | set(own))


def detail(catalogue: KnownModels, revision: Revision, usage: Usage) -> dict[str, Any]:
    """Return a revision with its files, and how it is on each node."""
    others = [each.revision for each in catalogue.models.of(revision.reference) if each.revision != revision.revision]
    files = revision.described.files if revision.described else []
    return summary(catalogue, revision, usage) | {
        "holdings": [holding_view(revision.holdings[node_id]) for node_id in sorted(revision.holdings)],
        "files": [file.model_dump() for file in files],
        "other_revisions": others,
        "links": links(f"{revision.reference}@{revision.revision}"),
    }


def holding_view(holding: Holding) -> dict[str, Any]:
    """Return how a revision is on a node."""
    return asdict(holding)


def links(reference: str) -> dict[str, str]:
    """Return where a model and its events are."""
    return {"self": f"/v1/models/{reference}", "events": f"/v1/models/{reference}/events"}


def _bare(catalogue: KnownModels, events: list[ModelRegistered], usage: Usage) -> dict[str, Any]:
    """Return a model that workers can run, and nobody has described."""
    kinds = sorted({event.kind for event in events})
    first = events[0]
    return {
        **_head(catalogue, first.reference, first.revision, usage),
        "id": first.reference,
        "kind": kinds[0],
        "kinds": kinds,
        "architecture": first.architecture,
        "size_bytes": first.size_bytes,
        "context_tokens": first.context_tokens,
        "aliases": [],
        "nodes": {},
        "pinned": [],
        "served": True,
    }


def _head(catalogue: KnownModels, reference: str, revision: str | None, usage: Usage) -> dict[str, Any]:
    heard_at = catalogue.heard_at(reference, revision)
    used = usage.get((reference, revision))
    return {
        "object": "model",
        "created": int(heard_at.timestamp()) if heard_at else 0,
        "owned_by": reference.partition("/")[0] if "/" in reference else LOCAL,
        "reference": reference,
        "revision": revision,
        "runs": used.runs if used else 0,
        "run_s": round(used.run_s, 3) if used else 0.0,
        "last_used_at": used.last_used_at if used else None,
    }


def _told(revision: Revision) -> dict[str, Any]:
    """Return what its description says, or in part what a worker says."""
    if (described := revision.described) is not None:
        return described.model_dump(include=DESCRIBED)
    first = revision.registered[0] if revision.registered else None
    return {name: getattr(first, name, None) for name in REGISTERED}


def by_status(revision: Revision) -> dict[str, list[str]]:
    """Return the nodes that have something to do with a revision, by how it is on them."""
    found: dict[str, list[str]] = defaultdict(list)
    for node_id in sorted(revision.holdings):
        found[revision.holdings[node_id].status].append(node_id)
    found.pop("absent", None)
    return dict(found)
