"""Whether a task's model is there, or comes: asked before a task is accepted.

A model that some worker serves is found in a dictionary. One that a node has, or fetches, is waited for by the task in
its queue. One that no node has is fetched for it, if `models.auto_download` says so, and else refused.
"""

from __future__ import annotations

import ipaddress

from bitinglip.errors import (
    HubOffline,
    InvalidReference,
    ModelKindMismatch,
    ModelNotFetched,
    ModelNotOnHub,
    RevisionNotOnHub,
    UnknownModel,
)
from bitinglip.gateway import wishes
from bitinglip.gateway.context import Gateway
from bitinglip.gateway.describing import described
from bitinglip.gateway.modelfit import chosen_node
from bitinglip.gateway.modelviews import kinds_of
from bitinglip.models.state import Holding, Revision
from bitinglip.settings import Settings

BUILT_IN = frozenset({"echo"})
"""Kinds whose models are on no hub."""
PROMISING = frozenset({"stored", "wanted", "fetching"})


async def admit(gateway: Gateway, model: str, kind: str) -> None:
    """Let a task for this model pass: it is there or comes, or is asked for now.

    Raises:
        UnknownModel: nobody has it, and it is not to be fetched, or not on the hub.
        ModelKindMismatch: it is no model for this kind.
        ModelNotFetched: the nodes that were to fetch it could not.
        ModelDoesNotFit: no node can run it.
        Rejected, Denied, Unavailable: the hub refuses it, or cannot be asked.
        NoServer: the log cannot be asked.
    """
    catalogue = gateway.catalogue
    if catalogue.serves(model, kind) or _comes(catalogue.current(model), kind):
        return
    await catalogue.catch_up()
    known = catalogue.current(model)
    if catalogue.serves(model, kind) or _comes(known, kind):
        return
    if await _a_worker_has_it(gateway, model, kind):
        return
    if known is not None and kind in kinds_of(known) and (failed := failure_of(known)) is not None:
        raise ModelNotFetched(model=model, node_id=failed.node_id, problem=(failed.problem or "it failed").rstrip("."))
    if kind in BUILT_IN or not downloads_by_itself(gateway.settings):
        raise unknown(gateway, model, kind)
    await _have_fetched(gateway, model, kind)


def downloads_by_itself(settings: Settings) -> bool:
    """Tell whether a task for a model that no node has makes one fetch it."""
    told = settings.models.auto_download
    return _is_loopback(settings.gateway.host) if told is None else told


def unknown(gateway: Gateway, model: str, kind: str) -> UnknownModel:
    """Return the refusal of a model that nobody has."""
    return UnknownModel(model=model, kind=kind, known=", ".join(gateway.catalogue.served_as(kind)) or "nothing yet")


def failure_of(revision: Revision) -> Holding | None:
    """Return the node on which a revision could not be fetched for good; none if one has it, or still tries."""
    holdings = revision.holdings.values()
    if any(holding.status in PROMISING or _tries_again(holding) for holding in holdings):
        return None
    return next((holding for holding in holdings if holding.status == "failed"), None)


async def _a_worker_has_it(gateway: Gateway, model: str, kind: str) -> bool:
    """Tell whether a worker says so itself: one that serves from a folder of its own, when nodes dropped theirs."""
    name = gateway.catalogue.resolve(model)
    rows = await gateway.readmodel.queries.workers()
    served = (each for row in rows if row.state == "started" for each in row.models or [])
    return any((each.get("reference"), each.get("kind")) == (name, kind) for each in served)


async def _have_fetched(gateway: Gateway, model: str, kind: str) -> None:
    try:
        revision = await described(gateway, model)
    except (ModelNotOnHub, RevisionNotOnHub, HubOffline, InvalidReference) as error:
        raise unknown(gateway, model, kind) from error
    if kind not in (kinds := kinds_of(revision)):
        raise ModelKindMismatch(model=model, kind=kind, kinds=", ".join(kinds) or "none that an engine takes")
    node_id = await chosen_node(gateway, revision)
    await wishes.fetch(gateway, revision, [node_id], "task")
    for part in (revision.described.parts if revision.described else {}).values():
        await wishes.fetch(gateway, await described(gateway, part), [node_id], "task")


def _comes(revision: Revision | None, kind: str) -> bool:
    return (
        revision is not None
        and any(holding.status in PROMISING or _tries_again(holding) for holding in revision.holdings.values())
        and kind in kinds_of(revision)
    )


def _tries_again(holding: Holding) -> bool:
    return holding.status == "failed" and holding.retry_at is not None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
