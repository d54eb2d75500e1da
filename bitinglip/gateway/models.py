"""Models: which there are, and having nodes fetch, take in, keep, check and drop them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import ModelMissing, NodeNotFound, NoNodeOnline
from bitinglip.events.model import ModelImportAsked
from bitinglip.gateway import aliases, bodies, liveness, modelviews, past, pastviews, requests, wishes
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.describing import described
from bitinglip.gateway.modelfit import chosen_node, misfits
from bitinglip.gateway.responses import json
from bitinglip.models.holders import is_gateway
from bitinglip.models.reference import parse_reference
from bitinglip.models.state import Revision

Name = Annotated[str, Field(min_length=1, max_length=200)]
Nodes = Annotated[list[Name], Field(min_length=1, max_length=1000)] | Literal["all"]


class AskModel(BaseModel):
    """What is to be fetched, or taken in: the body of `POST /v1/models`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    model: str | None = Field(
        default=None, min_length=1, max_length=200, description="`org/name` or `org/name@revision`, to be fetched."
    )
    nodes: Nodes | None = Field(
        default=None, description="Nodes that are to have it, or `all` that are online; none: one that fits is chosen."
    )
    alias: str | None = Field(default=None, min_length=1, max_length=96, description="Name that is to stand for it.")
    pin: bool = Field(default=False, description="Whether these nodes are to keep it, whatever room others need.")
    folder: str | None = Field(
        default=None, alias="import", min_length=1, max_length=4096, description="Folder on a node, to be taken in."
    )
    node: str | None = Field(default=None, min_length=1, max_length=200, description="Node that the folder lies on.")
    name: str | None = Field(
        default=None, alias="as", min_length=1, max_length=200, description="Name that it gets, as `org/name`."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.model is None) == (self.folder is None):
            raise ValueError("give one of model and import")
        if self.folder is not None and (self.node is None or self.name is None):
            raise ValueError("an import needs node and as")
        if self.folder is not None and (self.nodes is not None or self.alias is not None or self.pin):
            raise ValueError("an import takes no nodes, alias or pin")
        return self


class AskNodes(BaseModel):
    """Which nodes are meant: the body of `…/pin`, `…/unpin`, `…/cancel` and of `DELETE`, which may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Nodes | None = Field(default=None, description="The nodes; none: all that this is about.")


class AskCheck(AskNodes):
    """Which nodes are to check, and whether to repair: the body of `…/verify`, which may be left out."""

    repair: bool = Field(default=False, description="Whether to fetch anew what is damaged or missing.")


Wish = Callable[[Gateway, Revision, list[str]], Awaitable[list[str]]]
Answer = Callable[[Request], Awaitable[Response]]


async def list_models(request: Request) -> Response:
    """Answer `GET /v1/models`."""
    requests.only(request, (past.AS_OF,))
    then = await past.listed(request, "data", pastviews.models)
    return json({"object": "list"} | (then or {"data": await models_now(gateway_of(request))}))


async def models_now(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the models as they are.

    Raises:
        NoServer: the log cannot be asked.
        ProjectionBehind: this gateway is slow to hear of what is in the log.
    """
    await gateway.catalogue.catch_up()
    return modelviews.listed(gateway.catalogue, await gateway.readmodel.queries.model_usage())


async def get_model(request: Request) -> Response:
    """Answer `GET /v1/models/{ref}`."""
    requests.only(request)
    gateway = gateway_of(request)
    ref = request.path_params["ref"]
    await gateway.catalogue.catch_up()
    usage = await gateway.readmodel.queries.model_usage()
    if (revision := gateway.catalogue.current(ref)) is not None:
        return json(modelviews.detail(gateway.catalogue, revision, usage))
    shown = (each for each in modelviews.listed(gateway.catalogue, usage) if each["id"] == ref)
    if (bare := next(shown, None)) is None:
        raise ModelMissing(reference=ref[:200])
    return json(bare | {"holdings": [], "files": [], "other_revisions": [], "links": modelviews.links(ref)})


async def ask(request: Request) -> Response:
    """Answer `POST /v1/models`: 202 with what was asked of which nodes, and where to watch it."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = await bodies.read(request, AskModel)
    return await (_fetch(gateway, asked) if asked.model is not None else _import(gateway, asked))


def wish(how: Wish) -> Answer:
    """Return what answers a wish about a model that is known; a name alone means all of its revisions.

    Without nodes it is about all that have it, or are to have it.
    """

    async def handle(request: Request) -> Response:
        gateway = gateway_of(request)
        requests.only(request)
        asked = await bodies.read_if_given(request, AskNodes)
        return await _carry_out(gateway, request.path_params["ref"], asked.nodes, how)

    return handle


async def verify(request: Request) -> Response:
    """Answer `POST /v1/models/{ref}/verify`."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = await bodies.read_if_given(request, AskCheck)

    async def how(gateway: Gateway, revision: Revision, nodes: list[str]) -> list[str]:
        return await wishes.check(gateway, revision, nodes, repair=asked.repair)

    return await _carry_out(gateway, request.path_params["ref"], asked.nodes, how)


async def pin(request: Request) -> Response:
    """Answer `POST /v1/models/{ref}/pin`: nodes that have it not fetch it; without nodes it is kept where it is."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = await bodies.read_if_given(request, AskNodes)
    revision = await described(gateway, request.path_params["ref"])
    nodes = await meant(gateway, asked.nodes)
    if nodes is None:
        nodes = _holders(revision) or [await chosen_node(gateway, revision)]
    told = await wishes.pin(gateway, revision, nodes)
    return json(_answer(revision, nodes, told), 202)


async def meant(gateway: Gateway, nodes: Nodes | None) -> list[str] | None:
    """Return the names of the nodes that are meant; none if none were given.

    Raises:
        NodeNotFound: one of them never said something.
        NoNodeOnline: all that are online are meant, and none is.
    """
    if nodes is None:
        return None
    rows = await liveness.nodes(gateway)
    if nodes == "all":
        return _some([row.node_id for row in rows if row.state != "offline"])
    known = {row.node_id for row in rows}
    for node_id in nodes:
        if node_id not in known:
            raise NodeNotFound(node_id=node_id[:200])
    return sorted(set(nodes))


async def place(
    gateway: Gateway, revision: Revision, nodes: list[str] | None, *, alias: str | None, pin: bool
) -> Response:
    """Have nodes fetch a revision and what it needs beside it; without nodes one that fits is chosen.

    Raises:
        ModelDoesNotFit: it fits on none.
        NoServer, StreamFull: the log does not take it now.
    """
    warnings = [] if nodes is None else await misfits(gateway, revision, nodes)
    nodes = nodes if nodes is not None else [await chosen_node(gateway, revision)]
    told = await (wishes.pin if pin else wishes.fetch)(gateway, revision, nodes)
    for part in (revision.described.parts if revision.described else {}).values():
        await wishes.fetch(gateway, await described(gateway, part), nodes)
    if alias is not None:
        await aliases.stand_for(gateway, alias, revision)
    return json(_answer(revision, nodes, told) | {"alias": alias, "warnings": warnings}, 202)


def _some(nodes: list[str]) -> list[str]:
    if not nodes:
        raise NoNodeOnline
    return nodes


async def _fetch(gateway: Gateway, asked: AskModel) -> Response:
    assert asked.model is not None
    nodes = await meant(gateway, asked.nodes)
    if asked.alias is not None:
        await aliases.check_name(gateway, asked.alias)
    revision = await described(gateway, asked.model, afresh=True)
    return await place(gateway, revision, nodes, alias=asked.alias, pin=asked.pin)


async def _import(gateway: Gateway, asked: AskModel) -> Response:
    assert asked.folder is not None
    assert asked.name is not None
    nodes = await meant(gateway, [asked.node or ""])
    assert nodes
    reference = parse_reference(asked.name).name
    event = ModelImportAsked(reference=reference, node_id=nodes[0], path=asked.folder, by=gateway.key_id)
    sequence = await wishes.tell(gateway, event)
    content = {"model": reference, "reference": reference, "revision": None, "nodes": nodes, "asked": nodes}
    return json(content | {"sequence": sequence, "links": modelviews.links(reference)}, 202)


async def _carry_out(gateway: Gateway, ref: str, nodes: Nodes | None, how: Wish) -> Response:
    await gateway.catalogue.catch_up()
    current = gateway.catalogue.current(ref)
    if current is None:
        raise ModelMissing(reference=ref[:200])
    named = await meant(gateway, nodes)
    revisions = gateway.catalogue.find(ref)
    told: set[str] = set()
    concerned: set[str] = set()
    for revision in revisions:
        about = named if named is not None else _holders(revision, gateways=how is wishes.remove)
        concerned.update(about)
        told.update(await how(gateway, revision, about))
    shown = revisions[0] if len(revisions) == 1 else current
    return json(_answer(shown, sorted(concerned), sorted(told)) | {"revisions": [r.revision for r in revisions]}, 202)


def _holders(revision: Revision, *, gateways: bool = False) -> list[str]:
    """Return the nodes that have a revision, or have something to do with it; and the gateways, if these are meant."""
    return sorted(
        node_id
        for node_id, holding in revision.holdings.items()
        if (holding.status != "absent" or holding.pinned) and (gateways or not is_gateway(node_id))
    )


def _answer(revision: Revision, nodes: list[str], told: list[str]) -> dict[str, Any]:
    """Return what is answered to a wish: `asked` names the nodes for which it is a new one."""
    reference = f"{revision.reference}@{revision.revision}"
    return {
        "model": reference,
        "reference": revision.reference,
        "revision": revision.revision,
        "nodes": nodes,
        "asked": told,
        "links": modelviews.links(reference),
    }
