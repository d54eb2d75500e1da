"""The audit: who asked for what, and the proof that a task's events are in the signed log."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import LedgerDamaged, TaskNotFound
from bitinglip.events.auditing import keys_told
from bitinglip.events.checking import NotAsSignedError
from bitinglip.events.cold import task_messages
from bitinglip.events.proofs import prove
from bitinglip.events.registry import REGISTRY
from bitinglip.events.streams import TASKS
from bitinglip.gateway import requests
from bitinglip.gateway.context import gateway_of
from bitinglip.gateway.responses import json
from bitinglip.projections.query import AuditFilter

NAMES = ("key", "type", "about", "since", "until", "limit", "cursor")
LIMIT, LIMIT_MOST = 50, 1000


async def list_asked(request: Request) -> Response:
    """Answer `GET /v1/audit`: the events that requests led to, the newest first, a page at a time."""
    requests.only(request, NAMES)
    kind = requests.one(request, "type")
    chosen = AuditFilter(
        key_id=requests.one(request, "key"),
        type=None if kind is None else requests.choice("type", kind, kind, REGISTRY),
        about=requests.one(request, "about"),
        since=requests.moment("since", requests.one(request, "since")),
        until=requests.moment("until", requests.one(request, "until")),
        limit=requests.number("limit", requests.one(request, "limit"), LIMIT, 1, LIMIT_MOST),
        cursor=requests.one(request, "cursor"),
    )
    rows, next_cursor = await gateway_of(request).readmodel.queries.audit(chosen)
    return json({"events": rows, "next_cursor": next_cursor})


async def task_proof(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}/proof`: the task's events, each with its path to a signed head."""
    log = gateway_of(request).log
    requests.only(request)
    task_id = requests.task_id_of(request)
    messages = await task_messages(log.connection, task_id)
    if not messages:
        raise TaskNotFound(task_id=task_id)
    keys = {key_id: key.base64 for key_id, key in (await keys_told(log)).items()}
    try:
        proof = await prove(log, TASKS, task_id, messages, keys)
    except (NotAsSignedError, ValueError) as error:
        raise LedgerDamaged(problem=str(error)) from error
    used = {head.key_id for head in proof.heads}
    return json(proof.model_dump() | {"keys": {key_id: key for key_id, key in keys.items() if key_id in used}})
