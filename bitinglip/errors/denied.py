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
    template = (
        "{waiting} tasks wait or run for {model!r} in the lane {lane!r}, of {limit} that may (`gateway.queue_most`): "
        "{asked} more are not taken for now."
    )
    remedy = "Send the request again after `Retry-After` seconds, or let more workers serve the model."
    lane: str
    model: str
    limit: int
    waiting: int
    asked: int
    retry_after_s: int = 1


@dataclass(eq=False, kw_only=True)
class KeyFull(Denied):
    """As many tasks of this key wait in all queues together as may."""

    code, status = "key_full", 429
    template = (
        "{waiting} tasks of this key wait or run in all queues together, of {limit} that may (`gateway.key_most`): "
        "{asked} more are not taken for now."
    )
    remedy = (
        "Send the request again after `Retry-After` seconds, or cancel what is not wanted any more (`longest` names "
        "the queues in which most of it waits)."
    )
    key: str | None
    limit: int
    waiting: int
    asked: int
    longest: list[dict[str, str | int]]
    retry_after_s: int = 1
