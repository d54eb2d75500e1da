"""Aliases: names that stand for a revision of a model, which can be set, set back and taken away."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import AliasNotFound, AliasTaken, InvalidReference, ModelMissing, NothingBefore
from bitinglip.events.model import ModelAliasRemoved, ModelAliasSet
from bitinglip.gateway import bodies, requests, wishes
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.models.reference import parse_reference
from bitinglip.models.state import Alias, Key, Revision


class SetAlias(BaseModel):
    """What a name is to stand for: the body of `PUT /v1/aliases/{alias}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(
        min_length=1, max_length=200, description="`org/name@revision` or `org/name`, which means the one known last."
    )


async def list_aliases(request: Request) -> Response:
    """Answer `GET /v1/aliases`."""
    requests.only(request)
    catalogue = gateway_of(request).catalogue
    await catalogue.catch_up()
    return json({"aliases": [_shown(catalogue.models.aliases[name]) for name in sorted(catalogue.models.aliases)]})


async def get_alias(request: Request) -> Response:
    """Answer `GET /v1/aliases/{alias}`."""
    requests.only(request)
    return json(_shown(await _alias(request)))


async def set_alias(request: Request) -> Response:
    """Answer `PUT /v1/aliases/{alias}`: a name that stands for the same already is left as it is."""
    gateway = gateway_of(request)
    requests.only(request)
    name = request.path_params["alias"]
    asked = await bodies.read(request, SetAlias)
    await check_name(gateway, name)
    revision = gateway.catalogue.current(asked.model)
    if revision is None:
        raise ModelMissing(reference=asked.model)
    return json(_shown(await stand_for(gateway, name, revision)))


async def delete_alias(request: Request) -> Response:
    """Answer `DELETE /v1/aliases/{alias}`: tasks that came by it keep their model."""
    gateway = gateway_of(request)
    requests.only(request)
    alias = await _alias(request)
    async with gateway.catalogue.turn:
        await wishes.tell(gateway, ModelAliasRemoved(reference=alias.name, by=gateway.key_id))
    return json(_shown(alias))


async def rollback(request: Request) -> Response:
    """Answer `POST /v1/aliases/{alias}/rollback`: the name stands for what it stood for before."""
    gateway = gateway_of(request)
    requests.only(request)
    alias = await _alias(request)
    if not alias.before:
        raise NothingBefore(alias=alias.name)
    return json(_shown(await _set(gateway, alias.name, alias.before[-1])))


async def check_name(gateway: Gateway, name: str) -> None:
    """Refuse a name that is none for an alias.

    Raises:
        InvalidReference: it is none for a model either, or names a revision.
        AliasTaken: a model is called so.
        NoServer: the log cannot be asked.
    """
    if parse_reference(name).revision is not None:
        raise InvalidReference(reference=name, problem="an alias has no revision")
    await gateway.catalogue.catch_up()
    if name not in gateway.catalogue.models.aliases and (
        gateway.catalogue.models.of(name) or await gateway.catalogue.knows(name)
    ):
        raise AliasTaken(alias=name)


async def stand_for(gateway: Gateway, name: str, revision: Revision) -> Alias:
    """Have a name stand for a revision of a model; returns the alias as it is then."""
    return await _set(gateway, name, (revision.reference, revision.revision))


async def _set(gateway: Gateway, name: str, key: Key) -> Alias:
    catalogue = gateway.catalogue
    async with catalogue.turn:
        await catalogue.catch_up()
        known = catalogue.models.aliases.get(name)
        if known is None or (known.model, known.revision) != key:
            model, revision = key
            event = ModelAliasSet(reference=name, model=model, revision=revision, by=gateway.key_id)
            await wishes.tell(gateway, event)
    return catalogue.models.aliases[name]


async def _alias(request: Request) -> Alias:
    catalogue = gateway_of(request).catalogue
    await catalogue.catch_up()
    name: str = request.path_params["alias"]
    if name not in catalogue.models.aliases:
        raise AliasNotFound(alias=name[:200])
    return catalogue.models.aliases[name]


def _shown(alias: Alias) -> dict[str, Any]:
    return {
        "alias": alias.name,
        "model": f"{alias.model}@{alias.revision}",
        "reference": alias.model,
        "revision": alias.revision,
        "set_at": alias.set_at,
        "by": alias.by,
        "before": [f"{model}@{revision}" for model, revision in alias.before],
    }
