"""What a model is, before anything of it is here: looked up in what is known, else asked of the hub, within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from bitinglip.errors import HubOffline, HubUnreachable, Unavailable
from bitinglip.events.model import ModelDescribed
from bitinglip.gateway import wishes
from bitinglip.gateway.context import Gateway
from bitinglip.models import hub
from bitinglip.models.hubclient import hub_token
from bitinglip.models.reference import parse_reference
from bitinglip.models.state import Revision

_T = TypeVar("_T")


async def described(gateway: Gateway, ref: str, *, afresh: bool = False) -> Revision:
    """Return the revision that a name means, described; what is learnt of it from the hub is put into the log.

    `afresh`: where a branch leads is asked of the hub even if it is known from before; if the hub cannot be asked,
    what is known has to do.

    Raises:
        InvalidReference: the name is none.
        Rejected, Denied: the hub has no such model, or refuses it; nothing of it can be loaded.
        HubUnreachable, HubOffline: the hub cannot be asked, and nothing is known.
        NoServer, StreamFull: the log does not take what was learnt.
    """
    await gateway.catalogue.catch_up()
    known = gateway.catalogue.current(ref)
    here = known is not None and known.described is not None
    if known is not None and here and (not afresh or _is_settled(gateway, ref, known)):
        return known
    try:
        return await _together(gateway, gateway.catalogue.resolve(ref))
    except (Unavailable, HubOffline):
        if known is None or not here:
            raise
        return known


async def ask_hub(gateway: Gateway, question: Callable[[], _T]) -> _T:
    """Return the hub's answer to a question, which blocks.

    Raises:
        HubUnreachable: it does not come within `models.hub_wait_s`; the thread that waits for it ends later.
    """
    settings = gateway.settings.models
    try:
        async with asyncio.timeout(settings.hub_wait_s):
            return await asyncio.to_thread(question)
    except TimeoutError as error:
        problem = f"no answer within {settings.hub_wait_s:g} s"
        raise HubUnreachable(endpoint=settings.endpoint or "of models", problem=problem) from error


def _is_settled(gateway: Gateway, ref: str, known: Revision) -> bool:
    """Tell whether a name means this revision for good: it names it, is an alias, or the files came from no hub."""
    stands = ref in gateway.catalogue.models.aliases or ref == f"{known.reference}@{known.revision}"
    return stands or (known.described is not None and known.described.source != "hub")


async def _together(gateway: Gateway, ref: str) -> Revision:
    """Ask the hub once for all who want to know the same at the same time."""
    asking = gateway.catalogue.asking
    if ref not in asking:
        task = asyncio.create_task(_learn(gateway, ref), name=f"describe {ref}")
        asking[ref] = task
        task.add_done_callback(lambda done: _forget(asking, ref, done))
    return await asyncio.shield(asking[ref])


def _forget(asking: dict[str, asyncio.Task[Revision]], ref: str, done: asyncio.Task[Revision]) -> None:
    del asking[ref]
    if not done.cancelled():
        done.exception()  # those who asked have it, if they still wait


async def _learn(gateway: Gateway, ref: str) -> Revision:
    """Ask the hub what a model is, and put that into the log, unless it is known."""
    parse_reference(ref)
    settings = gateway.settings
    trusted = ref.partition("@")[0] in settings.worker.trust_pickles
    found = await ask_hub(
        gateway,
        lambda: hub.describe(
            ref,
            endpoint=settings.models.endpoint,
            token=hub_token(),
            offline=settings.models.offline,
            trust_pickles=trusted,
            by=gateway.key_id,
        ),
    )
    async with gateway.catalogue.turn:
        await gateway.catalogue.catch_up()
        if _is_news(gateway, found):
            await wishes.tell(gateway, found)
    return gateway.catalogue.models.revisions[found.reference, found.revision]


def _is_news(gateway: Gateway, found: ModelDescribed) -> bool:
    """Tell whether a revision is not described yet, or what was asked for led elsewhere before."""
    catalogue, asked = gateway.catalogue, found.asked_revision
    means = catalogue.current(found.reference if asked in (None, "main") else f"{found.reference}@{asked}")
    known = catalogue.models.get(found.reference, found.revision).described
    return known is None or means is None or means.revision != found.revision
