"""Other nodes that have a model, and gateways that it was uploaded to: asked for it before the hub is."""

from __future__ import annotations

import asyncio
import logging

from bitinglip.errors import CommandRefused, NodeSilent, NoServer
from bitinglip.events import subjects
from bitinglip.events.connection import Connection
from bitinglip.events.service import command
from bitinglip.models.protocol import PeerSource
from bitinglip.models.state import Revision
from bitinglip.settings import Models as Settings

log = logging.getLogger("bitinglip.node")

ASKED_MOST = 4
"""Nodes that are asked for a revision, if the hub has it too."""
ANSWER_S = 5.0


class ModelPeers:
    """Asks them."""

    def __init__(self, connection: Connection, settings: Settings, node_id: str) -> None:
        self._connection = connection
        self._settings = settings
        self._node_id = node_id

    async def ask(self, revision: Revision) -> tuple[PeerSource, ...]:
        """Return where other nodes hand a revision out, of those that have it and answer."""
        on_hub = revision.described is not None and revision.described.source == "hub"
        if on_hub and not self._settings.share:
            return ()
        holders = [
            node_id
            for node_id, holding in revision.holdings.items()
            if holding.status == "stored" and node_id != self._node_id
        ]
        found = await asyncio.gather(
            *[self._one(node_id, revision) for node_id in holders[: ASKED_MOST if on_hub else None]]
        )
        return tuple(each for each in found if each is not None)

    async def _one(self, node_id: str, revision: Revision) -> PeerSource | None:
        body = {"reference": revision.reference, "revision": revision.revision}
        try:
            answer = await command(self._connection, node_id, subjects.node_command(node_id, "share"), body, ANSWER_S)
            return PeerSource(url=answer["url"], token=answer["token"])
        except (NodeSilent, CommandRefused, NoServer, KeyError) as error:
            log.info("%s does not hand out %s: %s", node_id, revision.reference, error)
            return None
