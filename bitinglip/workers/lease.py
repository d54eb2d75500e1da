"""Keeping leases: as long as a work message is in our hands, tell the server so, three times in a lease."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from bitinglip.errors import NoServer
from bitinglip.events.queue import Delivery

log = logging.getLogger(__name__)

SIGNS_PER_LEASE = 3


class Ledger(Protocol):
    """Somebody who keeps note of which leases are held, by where their messages are acked."""

    def hold(self, reply: str) -> None:
        """It is held from now on."""
        ...

    def release(self, reply: str) -> None:
        """It is held no more; one that was not is fine."""
        ...


class LeaseKeeper:
    """Extends the leases of the deliveries that it holds."""

    def __init__(self, lease_s: float, ledger: Ledger | None = None) -> None:
        self._period_s = lease_s / SIGNS_PER_LEASE
        self._ledger = ledger
        self._held: dict[str, Delivery] = {}

    def hold(self, delivery: Delivery) -> None:
        """Keep this lease from now on."""
        self._held[delivery.reply] = delivery
        if self._ledger is not None:
            self._ledger.hold(delivery.reply)

    def release(self, delivery: Delivery) -> None:
        """Let this lease go."""
        self._held.pop(delivery.reply, None)
        if self._ledger is not None:
            self._ledger.release(delivery.reply)

    async def run(self) -> None:
        """Keep the leases; runs until it is cancelled."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                for delivery in list(self._held.values()):
                    await delivery.in_progress()
            except NoServer as error:
                log.debug("leases could not be extended: %s", error)
