"""A file of a revision from another node, which need not be trusted: what comes is checked by its digest."""

from __future__ import annotations

import logging
import threading
from urllib.parse import quote

import httpx

from bitinglip.events.model import ModelFile
from bitinglip.models.layout import Place
from bitinglip.models.meter import FileMeter
from bitinglip.models.partial import Partial
from bitinglip.models.protocol import PeerSource

log = logging.getLogger(__name__)
CONNECT_S = 5.0
SILENT_S = 15.0
"""A peer that sends nothing for so long is given up."""


class Peers:
    """The nodes that have a revision; one that fails is not asked again."""

    def __init__(self, sources: tuple[PeerSource, ...]) -> None:
        self._left = list(sources)
        self._lock = threading.Lock()
        self._client = _client() if sources else None

    def __bool__(self) -> bool:
        """Whether there is one to ask."""
        return bool(self._left)

    def give_up(self, peer: PeerSource, why: object) -> None:
        """Ask a peer for nothing any more."""
        with self._lock:
            if peer in self._left:
                self._left.remove(peer)
                log.warning("the peer %s is not asked any more: %s", peer.url, why)

    def bring(self, place: Place, file: ModelFile, partial: Partial, meter: FileMeter) -> PeerSource | None:
        """Bring what is missing of a file from the first peer that can; returns who sent the last of it."""
        for peer in list(self._left):
            try:
                self._go_on(peer, place, file, partial, meter)
            except (httpx.HTTPError, _Refused) as error:
                self.give_up(peer, error)
            if partial.whole:
                return peer
        return None

    def _go_on(self, peer: PeerSource, place: Place, file: ModelFile, partial: Partial, meter: FileMeter) -> None:
        address = f"{peer.url}/{quote(place.repo.name)}/{quote(place.revision)}/{quote(file.path)}"
        headers = {"Authorization": f"Bearer {peer.token}", **partial.wanted}
        assert self._client is not None
        with self._client.stream("GET", address, headers=headers) as answer:
            if answer.status_code not in {200, 206}:
                raise _Refused(f"it answers {answer.status_code}")
            if answer.status_code == 200 and partial.have:
                partial.restart()
                meter.is_at(0)
            partial.take(answer.iter_raw(), meter.peer)


def _client() -> httpx.Client:
    return httpx.Client(
        timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S),
        limits=httpx.Limits(max_connections=None),
        trust_env=False,  # a peer is in our own network: no proxy
    )


class _Refused(Exception):
    """A peer does not send what it should."""
