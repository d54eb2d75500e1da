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
from bitinglip.gateway.streams import up_to

MOST = 500
"""Events that are sent in one piece."""


async def model_events(request: Request) -> Response:
    """Answer `GET /v1/models/{ref}/events`: with a revision (or an alias), only what is about that one.

    With `follow=false` it ends with what there is by now.
    """
    gateway = gateway_of(request)
    requests.only(request, ("after", "follow"))
    ref = request.path_params["ref"]
    after = requests.resume_after(request) or 0
    await gateway.catalogue.catch_up()
    name, _, revision = gateway.catalogue.resolve(ref).partition("@")
    if (until := await _end(gateway, name)) == 0:
        raise ModelMissing(reference=ref[:200])
    so_far = requests.choice("follow", requests.one(request, "follow"), "true", ("true", "false")) == "false"
    source = life(gateway, name, revision or None, after, until if so_far else None)
    return sse.stream(gateway, sse.until_closed(source, gateway.closing))


async def life(
    gateway: Gateway, name: str, revision: str | None, after: int, until: int | None = None
) -> AsyncGenerator[Seq[RawMessage]]:
    """Yield a model's events after a sequence, then live; those of one revision, and those of no certain one."""
    source = gateway.log.tail(MODELS, after, filters=[subjects.model_events(name)], most=MOST)
    if until is not None:
        source = up_to(source, after, until, lambda: _end(gateway, name))
    async with aclosing(source) as batches:
        async for batch in batches:
            if wanted := [message for message in batch if revision is None or _is_about(message, revision)]:
                yield wanted


def _is_about(message: RawMessage, revision: str) -> bool:
    try:
        return orjson.loads(message.payload)["data"].get("revision", revision) == revision
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return False


async def _end(gateway: Gateway, name: str) -> int:
    """Return the sequence of a model's last event; 0 if there is none."""
    last = await gateway.log.read_last(MODELS, subjects.model_events(name))
    return 0 if last is None else last.sequence
