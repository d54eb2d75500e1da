"""Watching a model: its life from its first event on, then live, download ticks included."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import aclosing

import orjson
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import ModelMissing
from bitinglip.events import subjects
from bitinglip.events.envelope import RawMessage
from bitinglip.events.streams import MODELS
from bitinglip.gateway import requests, sse
from bitinglip.gateway.context import Gateway, gateway_of

MOST = 500
"""Events that are sent in one piece."""


async def model_events(request: Request) -> Response:
    """Answer `GET /v1/models/{ref}/events`: with a revision (or an alias), only what is about that one."""
    gateway = gateway_of(request)
    requests.only(request, ("after",))
    ref = request.path_params["ref"]
    after = requests.resume_after(request) or 0
    await gateway.catalogue.catch_up()
    name, _, revision = gateway.catalogue.resolve(ref).partition("@")
    if await gateway.log.read_last(MODELS, subjects.model_events(name)) is None:
        raise ModelMissing(reference=ref[:200])
    return sse.stream(gateway, sse.until_closed(life(gateway, name, revision or None, after), gateway.closing))


async def life(gateway: Gateway, name: str, revision: str | None, after: int) -> AsyncGenerator[Seq[RawMessage]]:
    """Yield a model's events after a sequence, then live; those of one revision, and those of no certain one."""
    source = gateway.log.tail(MODELS, after, filters=[subjects.model_events(name)], most=MOST)
    async with aclosing(source) as batches:
        async for batch in batches:
            if wanted := [message for message in batch if revision is None or _is_about(message, revision)]:
                yield wanted


def _is_about(message: RawMessage, revision: str) -> bool:
    try:
        return orjson.loads(message.payload)["data"].get("revision", revision) == revision
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False
