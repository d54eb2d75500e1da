"""Denied: the key's owner can act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.root import BitingLipError


class Denied(BitingLipError):
    """The caller may not do this."""

    code, status, exit_code = "denied", 403, 3
    template = "This is not allowed."
    remedy = "Use a key that allows it."


class KeyMissing(Denied):
    """No valid API key came with the request."""

    code, status = "key_missing", 401
    template = "This gateway needs an API key, and none that it knows was sent."
    remedy = "Send 'Authorization: Bearer KEY', or set BITINGLIP_GATEWAY_API_KEY for the CLI."


@dataclass(eq=False, kw_only=True)
class HostRefused(Denied):
    """The Host header names another site: a page elsewhere is reaching for this machine's loopback."""

    code = "host_refused"
    template = "The host {host!r} is not this gateway."
    remedy = "Use 127.0.0.1 or localhost, or bind the gateway to the address that you use and set a key."
    host: str


@dataclass(eq=False, kw_only=True)
class QueueFull(Denied):
    """As many tasks wait in the queue of this lane, model and key as may."""

    code, status = "queue_full", 429
    template = "{limit} tasks wait for {model!r} in the lane {lane!r} already: no more are taken for now."
    remedy = "Send the request again after `Retry-After` seconds, or let more workers serve the model."
    lane: str
    model: str
    limit: int
    retry_after_s: int = 1
