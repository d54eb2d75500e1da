"""Who may come in: the key, and on loopback without a key, requests that mean this machine."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from bitinglip.errors import HostRefused, InvalidConfig, KeyMissing
from bitinglip.settings import Gateway

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key."""
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
KEY_ID = "gateway"
"""Name of the gateway's one key in events."""


def check_bind(settings: Gateway) -> None:
    """Refuse to listen where others reach us, without a key.

    Raises:
        InvalidConfig: the address is not loopback and there is no key.
    """
    if settings.api_key is None and not is_loopback(settings.host):
        raise InvalidConfig(
            problem=f"the gateway would listen on {settings.host or 'every address'} without a key; "
            "set gateway.api_key (BITINGLIP_GATEWAY_API_KEY), or bind to 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches a socket bound to this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Lets a request in, or says why not."""

    def __init__(self, settings: Gateway) -> None:
        key = settings.api_key
        self._expected = None if key is None else b"Bearer " + key.get_secret_value().encode()

    @property
    def key_id(self) -> str | None:
        """Name of the key that callers use; none on a gateway without one."""
        return None if self._expected is None else KEY_ID

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Let the request in.

        Raises:
            KeyMissing: a key is needed, and this is not it.
            HostRefused: the request was made for, or by, another site.
        """
        if path in OPEN_PATHS:
            return
        if self._expected is None:
            _check_host(headers)
        elif not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
            raise KeyMissing


def _check_host(headers: Mapping[bytes, bytes]) -> None:
    """Refuse DNS rebinding (another name for our address) and requests that another site's page sends."""
    host = headers.get(b"host", b"").decode("latin-1")
    if _name(f"//{host}") not in LOCAL_NAMES:
        raise HostRefused(host=host)
    origin = headers.get(b"origin")
    if origin is not None and _name(origin.decode("latin-1")) not in LOCAL_NAMES:
        raise HostRefused(host=origin.decode("latin-1"))


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
