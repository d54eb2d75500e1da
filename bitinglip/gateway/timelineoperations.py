"""The routes about timelines, as the OpenAPI document tells them."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.history import COUNTS, LEVELS
from bitinglip.gateway.schemas import (
    AS_OF,
    KIND,
    LANE,
    MOMENT,
    ON_PAST,
    OPTIONAL,
    STATE,
    TEXT,
    TIME,
    WHOLE,
    Operation,
    Schema,
    array_of,
    in_path,
    in_query,
    object_of,
)
from bitinglip.ids import ULID_PATTERN

NUMBER: Schema = {"type": "number"}
OPTIONAL_WHOLE: Schema = {"type": ["integer", "null"]}
OPTIONAL_NUMBER: Schema = {"type": ["number", "null"]}
OPTIONAL_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
SPAN = object_of(
    kind={"enum": ["scheduled", "dependent", "waiting", "loading", "running", "pause"]},
    attempt=WHOLE, start=TIME, end=OPTIONAL_TIME, ms=NUMBER, reason=OPTIONAL, due_at=OPTIONAL_TIME,
    outcome=OPTIONAL, problem=OPTIONAL,
    worker_id=OPTIONAL, node_id=OPTIONAL, device=OPTIONAL, revision=OPTIONAL, batch_size=OPTIONAL_WHOLE,
    run_ms=OPTIONAL_NUMBER,
)  # fmt: skip
TICK = object_of(at=TIME, attempt=WHOLE, step=WHOLE, total=OPTIONAL_WHOLE, unit=TEXT)
FETCH = object_of(node_id=TEXT, revision=TEXT, start=TIME, end=OPTIONAL_TIME, outcome=OPTIONAL, bytes=WHOLE)
END = object_of(
    state=STATE, at=TIME, attempt=OPTIONAL_WHOLE, by=OPTIONAL, reason=OPTIONAL, failure={"type": ["object", "null"]}
)
TASK_TIMELINE = object_of(
    task_id=TEXT, kind=KIND, model=TEXT, lane=LANE, state=STATE, submitted_at=TIME, ended_at=OPTIONAL_TIME, ms=NUMBER,
    spans=array_of(SPAN), ticks=object_of(count=WHOLE, sample=array_of(TICK)), fetches=array_of(FETCH),
    cancel_requested_at=OPTIONAL_TIME, end={"oneOf": [END, {"type": "null"}]}, as_of=MOMENT,
)  # fmt: skip
TASK_ID = in_path("task_id", "The task's id, a ULID.", ULID_PATTERN)

BUCKET = object_of((), start=TIME, end=TIME, **dict.fromkeys((*COUNTS, *LEVELS), WHOLE))
HISTORY: dict[str, Schema] = {"from": TIME, "to": TIME, "bucket_s": NUMBER, "buckets": array_of(BUCKET)}

TIMELINE_OPERATIONS = (
    Operation(
        "get", "/v1/timeline", "What came, began and ended in the cluster, and what there was, in buckets of time.",
        {200: object_of((), **HISTORY)},
        (errors.InvalidInput, errors.NotAMoment),
        (
            in_query("from", "Its begin: a time, or a distance as `2 h ago`; an hour before its end if not given."),
            in_query("to", "Its end; now if not given."),
            in_query("buckets", "How many; 60 if not given.", {"type": "integer", "minimum": 1, "maximum": 1000}),
        ),
        notes="`waiting`, `running` and `workers` are at a bucket's end, the others are counts of what happened in it.",
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/timeline", "A task's life in spans: waits, loads, attempts, pauses, and its end.",
        {200: TASK_TIMELINE}, (errors.TaskNotFound, *ON_PAST), (TASK_ID, AS_OF),
        notes="`ticks.sample` has at most 200 of the signs of progress; they leave the log after a time.",
    ),
)  # fmt: skip
