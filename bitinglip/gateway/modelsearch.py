"""Searching for models: on the hub, with a mark of how each would fit here; offline, among what is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import HubOffline, HubUnreachable, InvalidInput
from bitinglip.gateway import modelfit, modelviews, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.describing import ask_hub
from bitinglip.gateway.responses import json
from bitinglip.models import hub
from bitinglip.models.hub import HubModel, Sort
from bitinglip.models.hubclient import hub_token
from bitinglip.models.placement import Machine
from bitinglip.tasks.parameters import KINDS

LIMIT, LIMIT_MOST = 20, 100
SORTS = ("downloads", "likes")
GB = 10**9
BESIDES = 1.1
"""What a running model takes, to its weights: a rule of thumb, for models of which only their size is told."""
ITEM_BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}
DTYPES = ((3.0, "F32"), (1.5, "BF16"))
"""The precision of weights that take more bytes a number than this."""
LONGEST = 200


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    text: str
    kind: str | None
    licence: str | None
    most_bytes: int | None
    sort: Sort
    limit: int


async def search(request: Request) -> Response:
    """Answer `GET /v1/models:search`; if the hub cannot be asked, what is known is looked through, and it says so."""
    gateway = gateway_of(request)
    wanted, local = read_wanted(request)
    await gateway.catalogue.catch_up()
    machines = await modelfit.machines_of(gateway)
    if local:
        return json(_local(gateway, wanted, machines, None))
    try:
        found = await _on_hub(gateway, wanted)
    except (HubUnreachable, HubOffline) as error:
        return json(_local(gateway, wanted, machines, str(error)))
    shown = [_hit(gateway, each, machines) for each in found]
    return json({"models": shown, "source": "hub", "problem": None})


def read_wanted(request: Request) -> tuple[Wanted, bool]:
    """Read what is looked for, and whether only among what is known.

    Raises:
        InvalidInput: a parameter is refused; the error names it.
    """
    requests.only(request, ("text", "kind", "max_gb", "licence", "sort", "limit", "local"))
    kind = requests.one(request, "kind")
    wanted = Wanted(
        text=_short("text", requests.one(request, "text")) or "",
        kind=kind if kind is None else requests.choice("kind", kind, kind, KINDS),
        licence=_short("licence", requests.one(request, "licence")),
        most_bytes=_bytes(requests.one(request, "max_gb")),
        sort=cast("Sort", requests.choice("sort", requests.one(request, "sort"), SORTS[0], SORTS)),
        limit=requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST),
    )
    return wanted, requests.choice("local", requests.one(request, "local"), "false", ("true", "false")) == "true"


async def _on_hub(gateway: Gateway, wanted: Wanted) -> list[HubModel]:
    settings = gateway.settings.models
    return await ask_hub(
        gateway,
        lambda: hub.search(
            wanted.text,
            endpoint=settings.endpoint,
            token=hub_token(),
            offline=settings.offline,
            kind=wanted.kind,
            licence=wanted.licence,
            most_bytes=wanted.most_bytes,
            sort=wanted.sort,
            limit=wanted.limit,
        ),
    )


def _hit(gateway: Gateway, found: HubModel, machines: list[Machine]) -> dict[str, Any]:
    known = gateway.catalogue.current(found.name)
    if known is not None and known.described is not None:
        told = known.described
        fit = modelfit.mark(told.need_bytes, told.dtype, told.size_bytes, machines)
    else:
        fit = modelfit.mark(_need(found.parameters), _dtype(found), found.size_bytes or 0, machines)
    return asdict(found) | {"id": found.name, "fit": fit, "nodes": modelviews.by_status(known) if known else {}}


def _local(gateway: Gateway, wanted: Wanted, machines: list[Machine], problem: str | None) -> dict[str, Any]:
    found = [each for each in modelviews.listed(gateway.catalogue, {}) if _is_wanted(each, wanted)]
    return {"models": [_known(each, machines) for each in found[: wanted.limit]], "source": "local", "problem": problem}


def _is_wanted(shown: Mapping[str, Any], wanted: Wanted) -> bool:
    return (
        all(word in shown["id"].casefold() for word in wanted.text.casefold().split())
        and (wanted.kind is None or wanted.kind in shown["kinds"])
        and (wanted.licence is None or wanted.licence == shown.get("licence"))
        and (wanted.most_bytes is None or (shown["size_bytes"] or 0) <= wanted.most_bytes)
    )


def _known(shown: Mapping[str, Any], machines: list[Machine]) -> dict[str, Any]:
    """Return a model that is known here, in the shape of one that was found on the hub."""
    need: dict[str, int] = shown.get("need_bytes") or {}
    return {
        "name": shown["reference"],
        "kind": shown["kind"],
        "downloads": None,
        "likes": None,
        "licence": shown.get("licence"),
        "parameters": shown.get("parameters"),
        "size_bytes": shown["size_bytes"],
        "gated": bool(shown.get("gated")),
        "changed_at": None,
        "id": shown["id"],
        "fit": modelfit.mark(need, shown.get("dtype"), shown["size_bytes"] or 0, machines),
        "nodes": shown["nodes"],
    }


def _need(parameters: int | None) -> dict[str, int]:
    """Estimate the memory that a model needs by the numbers in its weights alone."""
    if parameters is None:
        return {}
    return {precision: round(parameters * size * BESIDES) for precision, size in ITEM_BYTES.items()}


def _dtype(found: HubModel) -> str | None:
    if not found.parameters or not found.size_bytes:
        return None
    each = found.size_bytes / found.parameters
    return next((name for least, name in DTYPES if each > least), None)


def _short(name: str, text: str | None) -> str | None:
    if text is not None and len(text) > LONGEST:
        raise InvalidInput(field=name, problem=f"has more than {LONGEST} characters")
    return text


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < 10**9:
        raise InvalidInput(field="max_gb", problem="must be a number of GB over 0")
    return round(size * GB)
