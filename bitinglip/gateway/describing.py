"""What a model is, before anything of it is here: looked up in what is known, else asked of the hub, within a time."""

from __future__ import annotations

import asyncio

from bitinglip.errors import HubUnreachable, ModelMissing, Unavailable
from bitinglip.events.model import ModelDescribed
from bitinglip.gateway import wishes
from bitinglip.gateway.context import Gateway
from bitinglip.models import hub
from bitinglip.models.reference import parse_reference
from bitinglip.models.state import Revision


async def described(gateway: Gateway, ref: str, *, afresh: bool = False) -> Revision:
    """Return the revision that a name means, described; what is learnt of it from the hub is put into the log.

    `afresh`: where a branch leads is asked of the hub even if it is known from before; if the hub cannot be reached,
    what is known has to do.

    Raises:
        InvalidReference: the name is none.
        ModelMissing: it is not known, and not of the kind that a hub has.
        HubError, HubUnreachable: the hub refuses, or cannot be reached, and nothing is known.
    """
    await gateway.catalogue.catch_up()
    known = gateway.catalogue.current(ref)
    if known is not None and known.described is not None and (not afresh or is_settled(gateway, ref, known)):
        return known
    try:
        found = await _ask(gateway, gateway.catalogue.resolve(ref))
    except Unavailable:
        if known is None or known.described is None:
            raise
        return known
    return await _learn(gateway, found)


def is_settled(gateway: Gateway, ref: str, known: Revision) -> bool:
    """Tell whether a name means this revision for good: it names it, is an alias, or the files came from no hub."""
    stands = ref in gateway.catalogue.models.aliases or ref == f"{known.reference}@{known.revision}"
    return stands or (known.described is not None and known.described.source != "hub")


async def _ask(gateway: Gateway, ref: str) -> ModelDescribed:
    reference = parse_reference(ref)
    settings = gateway.settings.models
    try:
        async with asyncio.timeout(settings.hub_wait_s):
            return await asyncio.to_thread(hub.describe, reference, endpoint=settings.endpoint, token=None)
    except TimeoutError as error:
        problem = f"no answer within {settings.hub_wait_s:g} s"
        raise HubUnreachable(endpoint=settings.endpoint or "of models", problem=problem) from error


async def _learn(gateway: Gateway, found: ModelDescribed) -> Revision:
    """Put what a hub told into the log, unless it is known."""
    catalogue = gateway.catalogue
    async with catalogue.turn:
        await catalogue.catch_up()
        asked = found.asked_revision
        means = catalogue.current(found.reference if asked in (None, "main") else f"{found.reference}@{asked}")
        known = catalogue.models.get(found.reference, found.revision).described
        if known is None or means is None or means.revision != found.revision:
            await wishes.tell(gateway, found.model_copy(update={"by": gateway.key_id}))
    revision = catalogue.models.revisions.get((found.reference, found.revision))
    if revision is None:
        raise ModelMissing(reference=found.reference)
    return revision
