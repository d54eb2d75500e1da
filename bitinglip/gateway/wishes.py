"""What is asked of nodes about models, written into the log: each wish once, however often it is asked for.

A wish names the nodes that are meant. Those that have what is asked, or are on their way to it, are left out; if none
is left, nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from bitinglip.events.model import (
    ModelCheckAsked,
    ModelEvent,
    ModelFetchAsked,
    ModelFetchCancelled,
    ModelPinned,
    ModelRemovalAsked,
    ModelUnpinned,
)
from bitinglip.gateway.context import Gateway
from bitinglip.models.state import Holding, Revision

ON_THE_WAY = frozenset({"stored", "wanted", "fetching"})
Changes = Callable[[Holding], bool]
Reason = Literal["command", "task", "pin"]


async def tell(gateway: Gateway, event: ModelEvent) -> int:
    """Put a fact about a model into the log; when this returns, this gateway knows of it.

    Raises:
        NoServer, StreamFull: the log does not take it now.
        ProjectionBehind: it is in the log, and this gateway is slow to hear of it.
    """
    return await gateway.catalogue.tell(event)


async def fetch(gateway: Gateway, revision: Revision, nodes: Iterable[str], reason: Reason = "command") -> list[str]:
    """Have nodes fetch a revision; returns those that were not on their way to it."""
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: holding.status not in ON_THE_WAY,
        lambda known, left: ModelFetchAsked(**known, nodes=left, reason=reason, by=gateway.key_id),
    )


async def cancel(gateway: Gateway, revision: Revision, nodes: Iterable[str]) -> list[str]:
    """Have nodes stop fetching a revision; returns those that were to have it, and had it not."""
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: holding.wanted,
        lambda known, left: ModelFetchCancelled(**known, nodes=left, by=gateway.key_id),
    )


async def remove(gateway: Gateway, revision: Revision, nodes: Iterable[str]) -> list[str]:
    """Have nodes drop a revision; returns those that had something of it, or were to have it."""
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: holding.status not in {"absent", "removing"},
        lambda known, left: ModelRemovalAsked(**known, nodes=left, by=gateway.key_id),
    )


async def pin(gateway: Gateway, revision: Revision, nodes: Iterable[str]) -> list[str]:
    """Have nodes get a revision and keep it; returns those that had it not, or not so."""
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: not holding.pinned or holding.status not in ON_THE_WAY,
        lambda known, left: ModelPinned(**known, nodes=left, by=gateway.key_id),
    )


async def unpin(gateway: Gateway, revision: Revision, nodes: Iterable[str]) -> list[str]:
    """Let nodes drop a revision again; returns those that were to keep it."""
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: holding.pinned,
        lambda known, left: ModelUnpinned(**known, nodes=left, by=gateway.key_id),
    )


async def check(gateway: Gateway, revision: Revision, nodes: Iterable[str], *, repair: bool) -> list[str]:
    """Have nodes compare a revision's files with their digests; returns those that have it and do not do so already."""
    under_way = {"repair"} if repair else {"check", "repair"}
    return await _ask(
        gateway,
        revision,
        nodes,
        lambda holding: holding.status == "stored" and holding.check not in under_way,
        lambda known, left: ModelCheckAsked(**known, nodes=left, repair=repair, by=gateway.key_id),
    )


async def _ask(
    gateway: Gateway,
    revision: Revision,
    nodes: Iterable[str],
    changes: Changes,
    event: Callable[[dict[str, str], list[str]], ModelEvent],
) -> list[str]:
    """Write a wish for those of the nodes for which it changes something."""
    catalogue = gateway.catalogue
    async with catalogue.turn:
        await catalogue.catch_up()
        now = catalogue.models.get(revision.reference, revision.revision)
        left = sorted(node_id for node_id in set(nodes) if changes(now.on(node_id)))
        if left:
            await tell(gateway, event({"reference": now.reference, "revision": now.revision}, left))
    return left
