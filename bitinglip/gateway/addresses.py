"""Which address a request came from, and what of it may be written down."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from functools import lru_cache

from bitinglip.settings import Gateway

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PREFIX = {4: 24, 6: 48}
"""Bits of an address that stay, by version: those of a network that many are in."""
FORWARDED = b"x-forwarded-for"
KNOWN_MOST = 4096


class Addresses:
    """Reads the address of whoever asks."""

    def __init__(self, settings: Gateway) -> None:
        self._record = settings.record_address
        self._proxies = settings.trusted_proxies
        self._written = lru_cache(KNOWN_MOST)(self._write)

    def recorded(self, client: tuple[str, int] | None, headers: Mapping[bytes, bytes]) -> str | None:
        """Return what is written down of where a request came from; none if nothing is, or it is not known."""
        if self._record == "off" or client is None:
            return None
        return self._written(client[0], headers.get(FORWARDED, b"") if self._proxies else b"")

    def _write(self, peer: str, forwarded: bytes) -> str | None:
        address = self._behind_proxies(_address(peer), forwarded.decode("latin-1"))
        if address is None:
            return None
        if self._record == "full":
            return str(address)
        return str(ipaddress.ip_network((address, PREFIX[address.version]), strict=False))

    def _behind_proxies(self, address: Address | None, forwarded: str) -> Address | None:
        """Return the address behind our proxies: each has added at the end the one that asked it."""
        for text in reversed(forwarded.split(",")):
            before = _address(text.strip())
            if address is None or before is None or not any(address in network for network in self._proxies):
                break
            address = before
        return address


def _address(text: str) -> Address | None:
    """Read an address; one of IPv4 in the clothes of IPv6 is the former."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found
