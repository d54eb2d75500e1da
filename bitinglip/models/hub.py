"""What is on the hub: from `org/name[@revision]` to what it is, and finding models. Blocking: for a thread.

No weights travel: configurations and the heads of the weights' files are read, a hundred kilobytes each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Annotated, Any, Literal, TypeVar, cast

import orjson
from pydantic import BaseModel, Field, SecretStr, ValidationError

from bitinglip.errors import BrokenModel, HubOffline, HubUnreachable
from bitinglip.events.model import ModelDescribed, ModelFile
from bitinglip.models.describe import described
from bitinglip.models.headers import BYTES, Tensor
from bitinglip.models.hubclient import HubClient, Query, hub_client
from bitinglip.models.kinds import TAGS_OF_KIND, Config, part_names
from bitinglip.models.memory import Known
from bitinglip.models.reference import Reference, parse_reference
from bitinglip.models.repofiles import CONFIG, PICKLE, PIPELINE, SAFETENSORS, wanted

Sort = Literal["downloads", "likes"]
TOGETHER = 8
"""Heads of files that are read at the same time."""
PAGE, MOST_LOOKED_AT = 100, 1000
"""Models of one answer, and of all answers, among which those of the right size are looked for."""
_FIELDS = ("downloads", "likes", "gated", "pipeline_tag", "tags", "safetensors", "lastModified")
_LICENCE = "license:"


class _Large(BaseModel):
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _File(BaseModel):
    rfilename: str
    size: Annotated[int, Field(ge=0)]
    blobId: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    lfs: _Large | None = None


class _Info(BaseModel):
    sha: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    siblings: list[_File]
    gated: bool | str = False
    tags: list[str] = []
    cardData: dict[str, Any] | None = None


class _Weights(BaseModel):
    parameters: dict[str, int] = {}


class _Listed(BaseModel):
    id: str
    pipeline_tag: str | None = None
    downloads: int | None = None
    likes: int | None = None
    tags: list[str] = []
    safetensors: _Weights | None = None
    gated: bool | str | None = None
    lastModified: str | None = None


_Answer = TypeVar("_Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model that was found on the hub, as far as the hub tells."""

    name: str
    kind: str | None
    """Kind of task that it serves; none: the hub says none, or one that no engine takes."""
    downloads: int | None
    """Of the last 30 days."""
    likes: int | None
    licence: str | None
    parameters: int | None
    """Numbers in its weights."""
    size_bytes: int | None
    """Of its weights."""
    gated: bool
    """Whether its owner must let one in."""
    changed_at: str | None
    """When it was last changed, by ISO 8601."""


def describe(
    reference: str,
    *,
    endpoint: str | None,
    token: SecretStr | None,
    offline: bool = False,
    trust_pickles: bool = False,
    by: str | None = None,
) -> ModelDescribed:
    """Return what a model of the hub is, with the commit that its revision stands for now.

    Args:
        reference: `name` or `org/name`, with `@` and a branch, tag or commit if not `main` is meant.
        endpoint: Address of the hub; none: what HF_ENDPOINT says, or the hub's own.
        token: Of the account in whose name it is asked.
        offline: Whether `models.offline` forbids to ask.
        trust_pickles: Whether its weights may be pickles.
        by: Who asked.

    Raises:
        InvalidReference: the reference cannot be read.
        ModelNotOnHub: the hub has no such model.
        RevisionNotOnHub: the model has no such revision.
        ModelGated: its owner has to let one in.
        HubTokenRefused: the hub does not know the token.
        HubUnreachable: the hub does not answer, or not as it should.
        HubOffline: it is not to be asked.
        UnsafeRepository: it names files outside of its folder.
        OnlyPickles: its weights are pickles, which are not trusted.
        NothingToLoad: no engine can load anything of it.
        BrokenModel: its configuration, or the head of a file, cannot be read.
    """
    asked = parse_reference(reference)
    with _opened(endpoint, token, offline=offline) as hub:
        info = _read(hub, _Info, hub.info(asked))
        at = Reference(asked.name, info.sha)
        listing = [_model_file(file) for file in info.siblings]
        names = frozenset(file.path.partition("/")[0] for file in listing)
        config = _config(hub, at, names)
        parts = part_names(config) or None if PIPELINE in names else None
        files = wanted(listing, reference=reference, parts=parts, trust_pickles=trust_pickles)
        known = _known(hub, at, config, names, files)
    return described(
        asked.name,
        info.sha,
        files,
        known,
        source="hub",
        asked_revision=asked.revision or "main",
        licence=_licence(info.tags, info.cardData),
        tags=info.tags,
        gated=bool(info.gated),
        by=by,
    )


def search(
    text: str = "",
    *,
    endpoint: str | None,
    token: SecretStr | None,
    offline: bool = False,
    kind: str | None = None,
    licence: str | None = None,
    most_bytes: int | None = None,
    sort: Sort = "downloads",
    limit: int = 20,
) -> list[HubModel]:
    """Find models with safetensors weights on the hub, the most liked or downloaded first.

    Args:
        text: What their names have in them.
        endpoint: Address of the hub; none: what HF_ENDPOINT says, or the hub's own.
        token: Of the account in whose name it is asked.
        offline: Whether `models.offline` forbids to ask.
        kind: Kind of task that they serve.
        licence: Their licence, by the hub's name for it, as `apache-2.0`.
        most_bytes: Size of the weights; those of which the hub tells no size are found as well.
        sort: What they are sorted by.
        limit: How many there are at most.

    Raises:
        HubTokenRefused: the hub does not know the token.
        HubUnreachable: the hub does not answer, or not as it should.
        HubOffline: it is not to be asked.
    """
    query = [("sort", sort), ("filter", SAFETENSORS.strip(".")), *([("search", text)] if text else [])]
    query += [("filter", f"{_LICENCE}{licence}")] if licence else []
    query += [("limit", str(min(PAGE, limit if most_bytes is None else PAGE))), *[("expand", name) for name in _FIELDS]]
    tags: Sequence[str | None] = TAGS_OF_KIND.get(kind, (kind,)) if kind else (None,)
    with _opened(endpoint, token, offline=offline) as hub:
        by_tag = [_found(hub, [*query, *([("pipeline_tag", tag)] if tag else [])]) for tag in tags]
        every = merge(*by_tag, key=lambda model: getattr(model, sort) or 0, reverse=True)
        fitting = (model for model in every if most_bytes is None or (model.size_bytes or 0) <= most_bytes)
        return list(islice(fitting, limit))


def _opened(endpoint: str | None, token: SecretStr | None, *, offline: bool) -> Any:
    if offline:
        raise HubOffline(variable="models.offline")
    return hub_client(endpoint, token)


def _read(hub: HubClient, kind: type[_Answer], told: object) -> _Answer:
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise HubUnreachable(endpoint=hub.endpoint, problem=f"its answer is none ({where or 'all of it'})") from error


def _model_file(file: _File) -> ModelFile:
    if file.lfs is not None:
        return ModelFile(path=file.rfilename, size_bytes=file.size, sha256=file.lfs.sha256)
    return ModelFile(path=file.rfilename, size_bytes=file.size, git_sha1=file.blobId)


def _config(hub: HubClient, model: Reference, names: Iterable[str]) -> Config:
    """Return a model's configuration; an empty one if it has none, which is told with the other files."""
    path = next((path for path in (PIPELINE, CONFIG) if path in names), None)
    if path is None:
        return {}
    try:
        config = orjson.loads(hub.file(model, path))
    except orjson.JSONDecodeError as error:
        raise BrokenModel(reference=model.name, path=path, problem="it is no JSON") from error
    if not isinstance(config, dict):
        raise BrokenModel(reference=model.name, path=path, problem="it is no JSON object")
    return cast("Config", config)


def _known(
    hub: HubClient, model: Reference, config: Config, names: frozenset[str], files: Sequence[ModelFile]
) -> Known:
    weights = [file for file in files if file.path.endswith(SAFETENSORS)]

    def head(file: ModelFile) -> list[Tensor]:
        return hub.header(model, file.path, file.size_bytes)

    with ThreadPoolExecutor(TOGETHER) as pool:
        heads = list(pool.map(head, weights))
    tensors: dict[str, list[Tensor]] = {}
    for file, found in zip(weights, heads, strict=True):
        tensors.setdefault(file.path.rpartition("/")[0], []).extend(found)
    return Known(config, names, tensors, sum(file.size_bytes for file in files if file.path.endswith(PICKLE)))


def _licence(tags: Iterable[str], card: dict[str, Any] | None) -> str | None:
    named = (card or {}).get("license")
    tagged = (tag.removeprefix(_LICENCE) for tag in tags if tag.startswith(_LICENCE))
    return named if isinstance(named, str) else next(tagged, None)


def _found(hub: HubClient, query: Query) -> Iterator[HubModel]:
    return (_hub_model(_read(hub, _Listed, item)) for item in islice(hub.models(query), MOST_LOOKED_AT))


def _hub_model(listed: _Listed) -> HubModel:
    numbers = listed.safetensors.parameters if listed.safetensors else {}
    return HubModel(
        name=listed.id,
        kind=next((kind for kind, tags in TAGS_OF_KIND.items() if listed.pipeline_tag in tags), None),
        downloads=listed.downloads,
        likes=listed.likes,
        licence=_licence(listed.tags, None),
        parameters=sum(numbers.values()) or None,
        size_bytes=sum(BYTES.get(dtype, 1) * count for dtype, count in numbers.items()) or None,
        gated=bool(listed.gated),
        changed_at=listed.lastModified,
    )
