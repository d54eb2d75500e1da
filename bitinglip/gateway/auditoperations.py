"""The routes about the audit, as the OpenAPI document tells them."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.schemas import (
    OPTIONAL,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    array_of,
    in_path,
    in_query,
    object_of,
)
from bitinglip.ids import ULID_PATTERN

ASKED_FOR = object_of(
    recorded_at=TIME, stream=TEXT, sequence=WHOLE, type=TEXT, about=TEXT, key_id=OPTIONAL, address=OPTIONAL,
    request_id=TEXT,
)  # fmt: skip
PROOF = object_of(
    format=WHOLE, stream=TEXT, about=TEXT,
    events=array_of(
        object_of(
            sequence=WHOLE, time_ns=WHOLE, subject=TEXT, payload=TEXT, index=WHOLE, head=WHOLE, path=array_of(TEXT),
        )
    ),
    heads=array_of(object_of(tree_size=WHOLE, root_hash=TEXT, last_sequence=WHOLE, key_id=TEXT, signature=TEXT)),
    uncovered=array_of(WHOLE), keys={"type": "object", "additionalProperties": TEXT},
)  # fmt: skip

AUDIT_OPERATIONS = (
    Operation(
        "get", "/v1/audit", "List the events that requests led to, the newest first.",
        {200: object_of(events=array_of(ASKED_FOR), next_cursor=OPTIONAL)}, (errors.InvalidInput,),
        (
            in_query("key", "Name of the key that the request came with."),
            in_query("type", "Type of the event."),
            in_query("about", "What the event is about, as a task's id."),
            in_query("since", "Stored at this time or later.", TIME),
            in_query("until", "Stored before this time.", TIME),
            in_query("limit", "Most events in the answer; 50 if not given.",
                     {"type": "integer", "minimum": 1, "maximum": 1000}),
            in_query("cursor", "`next_cursor` of the page before."),
        ),
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/proof", "Prove that a task's events are in the signed log.", {200: PROOF},
        (errors.TaskNotFound, errors.InvalidInput, errors.LedgerDamaged, errors.NoServer),
        (in_path("task_id", "The task's id, a ULID.", ULID_PATTERN),),
        notes="`bitinglip audit verify --proof` checks it without a gateway. Events that no signed head covers yet are "
        "named in `uncovered`.",
    ),
)  # fmt: skip
