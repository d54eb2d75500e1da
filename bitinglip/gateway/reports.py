"""`GET /v1/reports/{name}`: reports as JSON, CSV, a chart (SVG) or a page (HTML)."""

from __future__ import annotations

import asyncio
import csv
import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput, ReportNotFound
from bitinglip.gateway import requests
from bitinglip.gateway.charts import svg
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.reportpage import page
from bitinglip.gateway.responses import json
from bitinglip.projections.reports import BY, Chosen, Report

FORMATS = {"json": "application/json", "csv": "text/csv", "svg": "image/svg+xml", "html": "text/html"}
SINCE = timedelta(days=7)
LONGEST = timedelta(days=3660)
PARAMETERS = ("since", "until", "by", "key", "model", "format")
WITH_KEYS = ("usage",)
"""Reports whose rows know of API keys."""
SAFE = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_AGO = re.compile(r"(\d{1,6}) ?(min|h|d|w)(?: ago)?")
_UNITS = {"min": "minutes", "h": "hours", "d": "days", "w": "weeks"}


async def get_report(request: Request) -> Response:
    """Answer `GET /v1/reports/{name}`."""
    requests.only(request, PARAMETERS)
    gateway = gateway_of(request)
    form = requests.choice("format", requests.one(request, "format"), _accepted(request), FORMATS)
    made = await gateway.readmodel.queries.report(read_chosen(request, gateway))
    if form == "json":
        return json(made)
    return Response(await asyncio.to_thread(_written, made, form), 200, SAFE, FORMATS[form])


def read_chosen(request: Request, gateway: Gateway) -> Chosen:
    """Read which report is wanted.

    Raises:
        ReportNotFound, InvalidInput: see there.
    """
    name: str = request.path_params["name"]
    if name not in BY:
        raise ReportNotFound(name=name[:100], known=", ".join(BY))
    now = gateway.log.clock()
    until = read_time("until", requests.one(request, "until"), now) or now
    since = read_time("since", requests.one(request, "since"), now) or until - SINCE
    if not timedelta() < until - since <= LONGEST:
        raise InvalidInput(field="since", problem="must be before `until`, by ten years at most")
    key = requests.one(request, "key")
    if key is not None and name not in WITH_KEYS:
        raise InvalidInput(field="key", problem=f"is of the report {WITH_KEYS[0]} alone")
    by = requests.choice("by", requests.one(request, "by"), BY[name][0], BY[name])
    return Chosen(name=name, since=since, until=until, by=by, key=key, model=requests.one(request, "model"))


def read_time(name: str, text: str | None, now: datetime) -> datetime | None:
    """Read a time: ISO 8601 with its zone, or how long ago it was, as `24h`, `7d` or `10 min ago`.

    Raises:
        InvalidInput: it is neither.
    """
    found = _AGO.fullmatch(text or "")
    if found is None:
        return requests.moment(name, text)
    try:
        return (now - timedelta(**{_UNITS[found[2]]: int(found[1])})).astimezone(UTC)
    except OverflowError as error:
        raise InvalidInput(field=name, problem="is too long ago") from error


def _accepted(request: Request) -> str:
    return next((form for form, kind in FORMATS.items() if requests.wants(request, kind)), "json")


def _written(made: Report, form: str) -> str:
    if form == "svg":
        return svg(made.charts[0])
    return page(made) if form == "html" else _csv(made)


def _csv(made: Report) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(made.columns)
    writer.writerows([[_cell(value) for value in row] for row in made.rows])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
