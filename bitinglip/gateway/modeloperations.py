"""The routes about models and aliases, as the OpenAPI document tells them."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.schemas import (
    AS_OF,
    BODY,
    FLAG,
    KIND,
    MOMENT,
    ON_PAST,
    OPTIONAL,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    Schema,
    array_of,
    in_header,
    in_path,
    in_query,
    object_of,
    ref,
)

OPTIONAL_WHOLE: Schema = {"type": ["integer", "null"]}
NUMBER: Schema = {"type": "number"}
OPTIONAL_NUMBER: Schema = {"type": ["number", "null"]}
OPTIONAL_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
STATUS: Schema = {"enum": ["absent", "wanted", "fetching", "stored", "failed", "stopped", "removing"]}
VERDICT: Schema = {"enum": ["fits", "unknown", "smaller", "quantised", "spread", "too_big"]}
LINKS = object_of(self=TEXT, events=TEXT)
REF = in_path(
    "ref",
    "An alias, `org/name` or `org/name@revision`; its slashes may stand as they are.",
    "[A-Za-z0-9][A-Za-z0-9._/@-]*",
)
ALIAS_NAME = in_path("alias", "The alias.", "[A-Za-z0-9][A-Za-z0-9._-]*")
AFTER = (
    in_query("after", "Only events after this sequence.", WHOLE),
    in_query("follow", "`false` ends the stream at the last event of now.", FLAG),
    in_header("Last-Event-ID", "Only events after this one; what a reader that connects again sends."),
)
_LISTED: dict[str, Schema] = {
    "id": TEXT, "object": {"const": "model"}, "created": WHOLE, "owned_by": TEXT, "reference": TEXT,
    "revision": OPTIONAL, "kind": OPTIONAL, "kinds": array_of(TEXT), "architecture": OPTIONAL,
    "size_bytes": OPTIONAL_WHOLE, "context_tokens": OPTIONAL_WHOLE, "aliases": array_of(TEXT),
    "nodes": {"type": "object", "additionalProperties": array_of(TEXT)}, "pinned": array_of(TEXT), "served": FLAG,
    "runs": WHOLE, "run_s": NUMBER, "last_used_at": OPTIONAL_TIME,
}  # fmt: skip
_DESCRIBED: dict[str, Schema] = {
    "parameters": OPTIONAL_WHOLE, "dtype": OPTIONAL,
    "need_bytes": {"type": "object", "additionalProperties": WHOLE}, "licence": OPTIONAL, "tags": array_of(TEXT),
    "gated": FLAG, "source": TEXT, "parts": {"type": "object", "additionalProperties": TEXT},
}  # fmt: skip
HOLDING = object_of(
    node_id=TEXT, status=STATUS, pinned=FLAG, asked=FLAG, done_bytes=WHOLE, total_bytes=WHOLE,
    bytes_per_s=OPTIONAL_NUMBER,
    left_s=OPTIONAL_NUMBER, stored_bytes=WHOLE, code=OPTIONAL, problem=OPTIONAL, remedy=OPTIONAL,
    retry_at=OPTIONAL_TIME, check={"enum": ["check", "repair", None]},
    checked_at=OPTIONAL_TIME, changed_at=OPTIONAL_TIME, sequence=WHOLE,
)  # fmt: skip
HUB = (
    errors.HubUnreachable, errors.HubOffline, errors.ModelNotOnHub, errors.RevisionNotOnHub, errors.ModelGated,
    errors.HubTokenRefused, errors.OnlyPickles, errors.NothingToLoad, errors.BrokenModel, errors.UnsafeRepository,
    errors.InvalidReference,
)  # fmt: skip
"""How asking the hub may end."""
AWAITED = object_of(
    model=TEXT, node_id=OPTIONAL, status=STATUS, done_bytes=WHOLE, total_bytes=WHOLE, bytes_per_s=OPTIONAL_NUMBER,
    left_s=OPTIONAL_NUMBER, retry_at=OPTIONAL_TIME, code=OPTIONAL, problem=OPTIONAL, remedy=OPTIONAL,
)  # fmt: skip
"""What a task that waits in its queue waits for."""
SUBMITTED = (
    errors.UnknownModel, errors.ModelKindMismatch, errors.ModelNotFetched, errors.ModelDoesNotFit, *HUB,
)  # fmt: skip
"""How a task's model may be refused."""
FILE = object_of(("path", "size_bytes"), path=TEXT, size_bytes=WHOLE, sha256=OPTIONAL, git_sha1=OPTIONAL)
MODEL = object_of(tuple(_LISTED), **_LISTED, **_DESCRIBED)
MODEL_DETAIL = object_of(
    (*_LISTED, "holdings", "files", "other_revisions", "links"),
    **_LISTED, **_DESCRIBED, holdings=array_of(HOLDING), files=array_of(FILE), other_revisions=array_of(TEXT),
    links=LINKS,
)  # fmt: skip
ASKED = object_of(
    ("model", "reference", "revision", "nodes", "asked", "links"),
    model=TEXT, reference=TEXT, revision=OPTIONAL, nodes=array_of(TEXT), asked=array_of(TEXT), alias=OPTIONAL,
    revisions=array_of(TEXT), sequence=WHOLE, warnings=array_of(TEXT), links=LINKS,
)  # fmt: skip
CARD_FIT = object_of(
    device=TEXT, verdict=VERDICT, precision=OPTIONAL, need_bytes=OPTIONAL_WHOLE, budget_bytes=WHOLE,
)  # fmt: skip
NODE_FIT = object_of(
    node_id=TEXT, online=FLAG, verdict=VERDICT, status=STATUS, room=FLAG, disk_free_bytes=OPTIONAL_WHOLE,
    cards=array_of(CARD_FIT),
)  # fmt: skip
FIT = object_of(
    reference=TEXT, revision=TEXT, kind=OPTIONAL, size_bytes=WHOLE,
    need_bytes={"type": "object", "additionalProperties": WHOLE}, verdict=VERDICT, chosen=OPTIONAL, problem=OPTIONAL,
    instead=OPTIONAL, nodes=array_of(NODE_FIT),
)  # fmt: skip
HIT = object_of(
    name=TEXT, id=TEXT, kind=OPTIONAL, downloads=OPTIONAL_WHOLE, likes=OPTIONAL_WHOLE, licence=OPTIONAL,
    parameters=OPTIONAL_WHOLE, size_bytes=OPTIONAL_WHOLE, gated=FLAG, changed_at=OPTIONAL,
    fit={"enum": [*VERDICT["enum"], None]}, nodes={"type": "object", "additionalProperties": array_of(TEXT)},
)  # fmt: skip
ON_DISK = object_of(
    reference=TEXT, revision=TEXT, size_bytes=WHOLE, last_used=TIME, pinned=FLAG, in_use=FLAG,
)  # fmt: skip
DISK_USE = object_of(
    marked_bytes=WHOLE, other_bytes=WHOLE, partial_bytes=WHOLE, free_bytes=WHOLE, budget_bytes=OPTIONAL_WHOLE,
    min_free_bytes=WHOLE, models=array_of(ON_DISK),
)  # fmt: skip
PRUNED = object_of(dry_run=FLAG, dropped=array_of(ON_DISK))
ALIAS = object_of(
    alias=TEXT, model=TEXT, reference=TEXT, revision=TEXT, set_at=TIME, by=OPTIONAL, before=array_of(TEXT),
)  # fmt: skip
KNOWN = (errors.ProjectionBehind, errors.NoServer)
ON_A_MODEL = (errors.ModelMissing, *KNOWN)
WISHED = (*BODY, errors.NodeNotFound, errors.NoNodeOnline, errors.StreamFull, *ON_A_MODEL)
NO_BODY = "The body may be left out: then it is about all nodes that have it, or are to have it."

MODEL_OPERATIONS = (
    Operation(
        "get", "/v1/models", "List the models: each known revision, and what workers serve besides.",
        {200: object_of(("object", "data"), object={"const": "list"}, data=array_of(ref("Model")), as_of=MOMENT)},
        (*KNOWN, *ON_PAST), (AS_OF,),
    ),
    Operation(
        "post", "/v1/models", "Have nodes fetch a model, or take in a folder.", {202: ref("ModelAsked")},
        (*BODY, errors.NodeNotFound, errors.NoNodeOnline, errors.ModelDoesNotFit, errors.AliasTaken,
         errors.StreamFull, *KNOWN, *HUB),
        body="AskModel", notes="`asked` names the nodes for which it is a new wish; `links.events` tells of each.",
    ),
    Operation(
        "get", "/v1/models:search", "Search for models: on the hub, or among those that are known here.",
        {200: object_of(models=array_of(ref("ModelFound")), source={"enum": ["hub", "local"]}, problem=OPTIONAL)},
        (errors.InvalidInput, errors.HubTokenRefused, *KNOWN),
        (in_query("text", "What to look for."), in_query("kind", "Only models of this kind.", KIND),
         in_query("max_gb", "Only models whose files take no more GB.", NUMBER),
         in_query("licence", "Only models with this licence."),
         in_query("sort", "`downloads` if not given.", {"enum": ["downloads", "likes"]}),
         in_query("limit", "Most models in the answer; 20 if not given.",
                  {"type": "integer", "minimum": 1, "maximum": 100}),
         in_query("local", "`true`: look only at what is known here.", FLAG)),
    ),
    Operation(
        "get", "/v1/models/{ref}", "Look at a model: its files, and how it is on each node.",
        {200: ref("ModelDetail")}, ON_A_MODEL, (REF,),
    ),
    Operation(
        "delete", "/v1/models/{ref}", "Have nodes drop a model from their disks.", {202: ref("ModelAsked")}, WISHED,
        (REF,), body="AskNodes", notes=NO_BODY + " A name alone means all revisions of it.",
    ),
    Operation(
        "get", "/v1/models/{ref}/fit", "How a model fits on each node, and which one would fetch it.",
        {200: ref("ModelFit")}, (*ON_A_MODEL, *HUB), (REF,),
    ),
    Operation(
        "get", "/v1/models/{ref}/events", "Watch a model: its life so far, then live, download ticks included.",
        {200: array_of(ref("Event"))}, (errors.InvalidInput, *ON_A_MODEL), (REF, *AFTER),
        media_types=("text/event-stream",),
    ),
    Operation(
        "post", "/v1/models/{ref}/pin", "Have nodes get a model and keep it.", {202: ref("ModelAsked")},
        (*WISHED, errors.ModelDoesNotFit, *HUB), (REF,), body="AskNodes",
        notes=NO_BODY + " If there is none, one that it fits on is chosen.",
    ),
    Operation(
        "post", "/v1/models/{ref}/unpin", "Let nodes drop a model again when they need room.",
        {202: ref("ModelAsked")}, WISHED, (REF,), body="AskNodes", notes=NO_BODY,
    ),
    Operation(
        "post", "/v1/models/{ref}/cancel", "Have nodes stop fetching a model; what they have of it stays.",
        {202: ref("ModelAsked")}, WISHED, (REF,), body="AskNodes", notes=NO_BODY,
    ),
    Operation(
        "post", "/v1/models/{ref}/verify", "Have nodes compare a model's files with their digests.",
        {202: ref("ModelAsked")}, WISHED, (REF,), body="AskCheck", notes=NO_BODY,
    ),
    Operation(
        "get", "/v1/aliases", "List the aliases.", {200: object_of(aliases=array_of(ref("Alias")))}, KNOWN,
    ),
    Operation(
        "get", "/v1/aliases/{alias}", "Look at an alias, and what it stood for before.", {200: ref("Alias")},
        (errors.AliasNotFound, *KNOWN), (ALIAS_NAME,),
    ),
    Operation(
        "put", "/v1/aliases/{alias}", "Have a name stand for a revision of a model.", {200: ref("Alias")},
        (*BODY, errors.AliasTaken, errors.InvalidReference, errors.StreamFull, *ON_A_MODEL), (ALIAS_NAME,),
        body="SetAlias",
    ),
    Operation(
        "delete", "/v1/aliases/{alias}", "Take an alias away; tasks that came by it keep their model.",
        {200: ref("Alias")}, (errors.AliasNotFound, errors.StreamFull, *KNOWN), (ALIAS_NAME,),
    ),
    Operation(
        "post", "/v1/aliases/{alias}/rollback", "Have a name stand for what it stood for before.",
        {200: ref("Alias")}, (errors.AliasNotFound, errors.NothingBefore, errors.StreamFull, *KNOWN), (ALIAS_NAME,),
    ),
)  # fmt: skip
