"""The cluster's timeline in buckets: what came, began and ended, and what there was at the end of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput
from bitinglip.gateway import liveness, requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.moment import parse
from bitinglip.tasks.state import TERMINAL

BUCKETS, BUCKETS_MOST = 60, 1_000
RANGE = timedelta(hours=1)
"""How far back it goes unless `from` says otherwise."""
COUNTS = ("arrived", "started", *sorted(TERMINAL))
LEVELS = ("waiting", "running", "workers")
Found = Mapping[int, Mapping[str, int]]
"""Counts, and changes of the levels, by bucket (from 1)."""


async def timeline(request: Request) -> Response:
    """Answer `GET /v1/timeline`."""
    requests.only(request, ("from", "to", "buckets"))
    gateway = gateway_of(request)
    now = gateway.log.clock()
    until = min(_time(request, "to", now) or now, now)
    begin = _time(request, "from", now) or until - RANGE
    if begin >= until:
        raise InvalidInput(field="from", problem="must be before `to`, and in the past")
    buckets = requests.number("buckets", requests.one(request, "buckets"), BUCKETS, 1, BUCKETS_MOST)
    width = max((until - begin) / buckets, timedelta(microseconds=1))
    silence = liveness.silence(gateway.settings.worker.heartbeat_s)
    rows = await gateway.readmodel.queries.timeline(begin, until, width, buckets, now - silence, silence)
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for bucket, what, number in rows:
        found[bucket][what] = number
    shown = list(filled(found, begin, width, buckets))
    return json({"from": begin, "to": until, "bucket_s": width.total_seconds(), "buckets": shown})


def filled(found: Found, begin: datetime, width: timedelta, buckets: int) -> Iterator[dict[str, Any]]:
    """Yield every bucket with its counts, and with what there was at its end."""
    levels = dict.fromkeys(LEVELS, 0)
    for number in range(1, buckets + 1):
        told = found.get(number, {})
        levels = {name: level + told.get(name, 0) for name, level in levels.items()}
        counts = {name: told.get(name, 0) for name in COUNTS}
        yield {"start": begin + width * (number - 1), "end": begin + width * number, **counts, **levels}


def _time(request: Request, name: str, now: datetime) -> datetime | None:
    text = requests.one(request, name)
    if text is None:
        return None
    found = parse(text, now)
    if isinstance(found, int):
        raise InvalidInput(field=name, problem="must be a time or a distance, as '2 h ago'; a sequence is none")
    return found
