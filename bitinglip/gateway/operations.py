"""Every route as the OpenAPI document tells it: one table, checked against the routes that are served."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.analyticsoperations import ANALYTICS_OPERATIONS
from bitinglip.gateway.auditoperations import AUDIT_OPERATIONS
from bitinglip.gateway.listing import FAILURES
from bitinglip.gateway.logoperations import LOG_OPERATIONS
from bitinglip.gateway.modeloperations import DISK_USE, MODEL_OPERATIONS, PRUNED, SUBMITTED
from bitinglip.gateway.schemas import (
    AS_OF,
    BODY,
    COMMANDED,
    FLAG,
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
    in_header,
    in_path,
    in_query,
    listed,
    object_of,
    ref,
)
from bitinglip.gateway.timelineoperations import TIMELINE_OPERATIONS
from bitinglip.gateway.uploadoperations import UPLOAD_OPERATIONS
from bitinglip.ids import ULID_PATTERN

QUEUE: Schema = object_of(
    lane=LANE,
    model=TEXT,
    key=OPTIONAL,
    requires={"oneOf": [object_of(vram_gb={"type": "number"}, label=array_of(TEXT)), {"type": "null"}]},
    depth=WHOLE, waiting=WHOLE, running=WHOLE,
    oldest_s={"type": ["number", "null"]}, rate_per_s={"type": "number"}, estimated_wait_s={"type": ["number", "null"]},
    paused=FLAG,
)  # fmt: skip
COUNTS: Schema = {"type": "object", "additionalProperties": WHOLE}
PROJECTION = object_of(
    projection=TEXT, version=TEXT, state={"enum": ["serving", "building"]}, current=FLAG, rows=COUNTS,
    checkpoint=COUNTS, target=COUNTS,
)  # fmt: skip
PAUSES: Schema = object_of(model=TEXT, paused_lanes=array_of(LANE))

TASK_ID = in_path("task_id", "The task's id, a ULID.", ULID_PATTERN)
BATCH_ID = in_path("batch_id", "The batch's id, a ULID.", ULID_PATTERN)
SCHEDULE_ID = in_path("schedule_id", "The schedule's id, a ULID.", ULID_PATTERN)
DIGEST = in_path("digest", "SHA-256 of the bytes, in hex.", "[0-9a-f]{64}")
AFTER = in_query("after", "Only events after this sequence.", WHOLE)
LAST_EVENT_ID = in_header(
    "Last-Event-ID", "As `after`, and before it; sent by an EventSource that connects again.", WHOLE
)
PREFER = in_header("Prefer", "`wait=n`: wait up to n seconds for the task's end.")
KEY = in_header("Idempotency-Key", "A repeat with the same key is answered with the first one's task.")

LISTING = (
    in_query("state", "States, repeated or with commas between them.", array_of(STATE)),
    in_query("kind", "Kind of task.", KIND),
    in_query("model", "Model reference."),
    in_query("lane", "Lane.", LANE),
    in_query("batch", "Batch that they were asked for with."),
    in_query("metadata.<key>", "Value that the task's metadata has under the key."),
    in_query("submitted_after", "Submitted after this time.", TIME),
    in_query("submitted_before", "Submitted before this time.", TIME),
    in_query("limit", "Most tasks in the answer; 50 if not given.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    in_query("cursor", "`next_cursor` of the page before."),
)
WATCHING = (
    in_query(
        "stream",
        "Which stream; `tasks` if not given.",
        {"type": "string", "enum": ["tasks", "workers", "models", "schedules"]},
    ),
    in_query("types", "Event types, repeated or with commas between them.", array_of(TEXT)),
    in_query("kind", "Only events about this kind of task or model.", KIND),
    in_query("task_id", "Only events of this task."),
    in_query("follow", "`false` ends the stream at the last event of now.", FLAG),
    AFTER,
    in_query(
        "from", "Where to start without `after`: `end` if not given.", {"type": "string", "enum": ["start", "end"]}
    ),
    LAST_EVENT_ID,
)
NODE_ID = in_path("node_id", "The node's name.", "[A-Za-z0-9_-]+")
WORKER_ID = in_path("worker_id", "The worker's name.", "[A-Za-z0-9_-]+")
NODE_COMMANDS = {
    "drain": "Have a node's workers take nothing new, also those that start later.",
    "undrain": "Have a node's workers take work again.",
    "restart-workers": "Restart a node's workers one after the other, each drained before; goes on after the answer.",
}
WORKER_COMMANDS = {
    "start": "Start a worker that was stopped.",
    "stop": "Stop a worker, and leave it so.",
    "restart": "Stop a worker, and start it anew.",
    "drain": "Have a worker take nothing new.",
    "undrain": "Have a worker take work again.",
}
NODE_STATUS = object_of(
    node_id=TEXT,
    draining=FLAG,
    labels={"type": "object"},
    restarting=array_of(TEXT),
    workers=array_of(ref("NodeWorker")),
)
UNHEARD = (
    "Of a moment whose heartbeats have left the log, what they told of a worker or node is null, `seen_at` among it."
)
CLUSTER = object_of(
    as_of=MOMENT, tasks={"type": "object", "additionalProperties": WHOLE}, nodes=array_of(ref("Node")),
    workers=array_of(ref("Worker")), queues=array_of(QUEUE), models=array_of(ref("Model")),
    batches=array_of(ref("Batch")), schedules=array_of(ref("ScheduleShown")),
)  # fmt: skip
LINES = in_query("lines", "How many; 100 if not given.", {"type": "integer", "minimum": 1, "maximum": 2000})
LINKS = object_of(self=TEXT, events=TEXT)
ARTIFACT = object_of(sha256=TEXT, size_bytes=WHOLE, media_type=TEXT, links=object_of(self=TEXT))
ACCEPTED = object_of(task_id=TEXT, state=STATE, sequence=WHOLE, links=LINKS)
BATCH = object_of(
    batch_id=TEXT, state={"enum": ["open", "closed", "completed"]}, tasks=WHOLE, sequence=WHOLE,
    links=object_of(self=TEXT, tasks=TEXT),
)  # fmt: skip
FORGOTTEN = object_of(task_id=TEXT, state=STATE, forgotten=FLAG, links=LINKS)
GONE = (
    errors.TaskNotFound, errors.TaskIsForgotten, errors.ArtifactNotFound, errors.ArtifactExpired, errors.InvalidInput,
    errors.NoServer,
)  # fmt: skip
ENDING = object_of(task_id=TEXT, state=STATE, cancel_requested=FLAG, links=LINKS)


BULK = object_of(
    ("matched", "refused", "task_ids", "dry_run", "next_cursor"),
    matched=WHOLE, cancelled=WHOLE, cancel_requested=WHOLE, retried=WHOLE, already_retried=WHOLE,
    forgotten=WHOLE,
    refused=array_of(object_of(task_id=TEXT, problem=TEXT)), task_ids=array_of(TEXT), dry_run=FLAG,
    next_cursor=OPTIONAL,
)  # fmt: skip


ON_MANY = (*BODY, errors.ProjectionBehind, errors.NoServer)
DEAD_LETTERS = (
    in_query("kind", "Kind of task.", KIND),
    in_query("model", "Model reference."),
    in_query("failure", "Kind of its last failure.", {"type": "string", "enum": list(FAILURES)}),
    in_query("after", "Ended after this time.", TIME),
    in_query("before", "Ended before this time.", TIME),
    in_query("limit", "Most tasks in the answer; 50 if not given.", {"type": "integer", "minimum": 1, "maximum": 1000}),
    in_query("cursor", "`next_cursor` of the page before."),
)
ON_ONE = (errors.ScheduleNotFound, errors.InvalidInput, errors.NoServer)
SSE = ("text/event-stream", "application/json")

OPERATIONS = (
    Operation(
        "post", "/v1/tasks", "Submit a task.", {202: ref("Accepted"), 200: ref("Task")},
        (*BODY, *SUBMITTED, errors.IdempotencyMismatch, errors.NoServer, errors.StreamFull),
        (KEY, PREFER), body="SubmitTask",
        notes="202: the task is in the log and will not be lost. 200: it ended within `Prefer: wait=n`. "
        "With `Accept: text/event-stream` the answer is the task's event stream.",
    ),
    Operation(
        "get", "/v1/tasks", "List tasks, the newest first.", {200: ref("TaskPage")}, ON_PAST, (*LISTING, AS_OF)
    ),
    Operation(
        "get", "/v1/tasks/{task_id}", "Look at a task.", {200: ref("Task")},
        (errors.TaskNotFound, *ON_PAST), (TASK_ID, AS_OF),
    ),
    Operation(
        "delete", "/v1/tasks/{task_id}", "Cancel a task.", {200: ref("Ending"), 202: ref("Ending")},
        (errors.TaskNotFound, errors.IllegalTransition, errors.InvalidInput, errors.NoServer),
        (TASK_ID, in_query("reason", "Why; kept with the task.", {"type": "string", "maxLength": 512})),
        notes="200: it has ended. 202: its worker was asked to stop.",
    ),
    Operation(
        "post", "/v1/tasks/{task_id}/retry", "Ask for a task that ended without a result once more.",
        {202: ref("Accepted")},
        (errors.TaskNotFound, errors.IllegalTransition, errors.InvalidInput, errors.ArtifactNotFound,
         errors.ArtifactExpired, errors.TaskIsForgotten, errors.NoServer, errors.StreamFull),
        (TASK_ID, in_query("force", "`true`: a new task, though it was retried before.", FLAG)),
        notes="A new task with the same request, and `retry_of`. Asked again it is the same new task.",
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/params", "Get what a task was asked, wherever it is.", {200: {"type": "object"}},
        GONE, (TASK_ID,),
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/result", "Get what a task answered, wherever it is.", {200: {"type": "object"}},
        (*GONE, errors.NoResult), (TASK_ID,),
    ),
    Operation(
        "post", "/v1/tasks/{task_id}/forget", "Destroy the key of a private task that has ended.", {200: FORGOTTEN},
        (errors.TaskNotFound, errors.IllegalTransition, errors.TaskNotPrivate, errors.InvalidInput, errors.NoServer),
        (TASK_ID,), notes="What it was asked and answered cannot be read any more. Asked again it changes nothing.",
    ),
    Operation(
        "post", "/v1/tasks:forget", "Forget all private tasks that have ended and a filter finds.", {200: BULK},
        ON_MANY, body="Selection",
    ),
    Operation(
        "post", "/v1/tasks:cancel", "Cancel all tasks that a filter finds.", {200: BULK}, ON_MANY, body="Selection"
    ),
    Operation(
        "post", "/v1/tasks:retry", "Retry all tasks that a filter finds.", {200: BULK},
        (*ON_MANY, errors.StreamFull), body="Selection",
    ),
    Operation(
        "get", "/v1/dead-letters", "List the tasks that are dead letters.", {200: ref("TaskPage")},
        (errors.InvalidInput,), DEAD_LETTERS,
    ),
    Operation(
        "get", "/v1/tasks/{task_id}/events", "Watch a task, from its first event to its end.",
        {200: array_of(ref("Event")), 204: {}}, (errors.TaskNotFound, errors.InvalidInput, errors.NoServer),
        (TASK_ID, AFTER, LAST_EVENT_ID, in_query("format", "`json`: the history so far.", {"enum": ["sse", "json"]})),
        media_types=SSE, notes="204: the task ended before or at `Last-Event-ID`, so that an EventSource stops.",
    ),
    Operation(
        "post", "/v1/batches", "Submit many tasks with one handle: all of them are taken, or none.",
        {202: BATCH},
        (*BODY, *SUBMITTED, errors.IdempotencyMismatch, errors.BatchIsClosed, errors.NoServer,
         errors.StreamFull),
        (KEY,), body="CreateBatch",
    ),
    Operation(
        "post", "/v1/batches/{batch_id}/tasks", "Add tasks to an open batch: all of them, or none.",
        {202: object_of(added=WHOLE, **BATCH["properties"])},
        (*BODY, errors.BatchNotFound, errors.BatchIsClosed, *SUBMITTED, errors.IdempotencyMismatch,
         errors.NoServer, errors.StreamFull),
        (BATCH_ID, KEY), body="BatchTasks",
        notes="A JSON list of at most 10,000 tasks; or JSON lines (`application/x-ndjson`), each a task.",
    ),
    Operation(
        "post", "/v1/batches/{batch_id}:close", "Let nothing more be added to a batch.", {200: BATCH},
        (errors.BatchNotFound, errors.InvalidInput, errors.NoServer, errors.StreamFull), (BATCH_ID,),
    ),
    Operation(
        "post", "/v1/batches/{batch_id}:cancel", "Close a batch, and cancel those of its tasks that have not ended.",
        {200: BULK}, (*ON_MANY, errors.BatchNotFound, errors.StreamFull), (BATCH_ID,), body="BatchCancel",
        notes="The body may be left out.",
    ),
    Operation(
        "get", "/v1/batches/{batch_id}/events", "Watch a batch: how far it is, up to its completion.",
        {200: {}, 204: {}},
        (errors.BatchNotFound, errors.InvalidInput, errors.ProjectionBehind, errors.NoServer),
        (BATCH_ID, AFTER, LAST_EVENT_ID), media_types=("text/event-stream",),
        notes="`progress` at most twice a second, then `batch.completed`. 204: that was at `Last-Event-ID`.",
    ),
    Operation(
        "get", "/v1/batches", "List the batches, the newest first.",
        {200: object_of(batches=array_of(ref("Batch")), next_cursor=OPTIONAL)}, (errors.InvalidInput,),
        (in_query("limit", "Most batches in the answer; 50 if not given.",
                  {"type": "integer", "minimum": 1, "maximum": 1000}),
         in_query("cursor", "`next_cursor` of the page before.")),
    ),
    Operation(
        "get", "/v1/batches/{batch_id}", "Look at a batch: what has become of its tasks.", {200: ref("Batch")},
        (errors.BatchNotFound, errors.InvalidInput, errors.ProjectionBehind, errors.NoServer), (BATCH_ID,),
    ),
    Operation(
        "post", "/v1/schedules", "Make a schedule: a task that is submitted again and again.",
        {201: ref("ScheduleShown")}, (*BODY, *SUBMITTED, errors.NoServer), body="CreateSchedule",
    ),
    Operation(
        "get", "/v1/schedules", "List the schedules, the oldest first.",
        {200: object_of(schedules=array_of(ref("ScheduleShown")))}, (errors.NoServer,),
    ),
    Operation(
        "get", "/v1/schedules/{schedule_id}", "Look at a schedule.", {200: ref("ScheduleShown")}, ON_ONE, (SCHEDULE_ID,)
    ),
    Operation(
        "delete", "/v1/schedules/{schedule_id}", "Delete a schedule; its tasks stay.",
        {200: object_of(schedule_id=TEXT, state=TEXT)}, ON_ONE, (SCHEDULE_ID,),
    ),
    Operation(
        "post", "/v1/schedules/{schedule_id}/pause", "Let a schedule fire no more for now.",
        {200: ref("ScheduleShown")}, ON_ONE, (SCHEDULE_ID,),
    ),
    Operation(
        "post", "/v1/schedules/{schedule_id}/resume", "Let a paused schedule fire again.",
        {200: ref("ScheduleShown")}, ON_ONE, (SCHEDULE_ID,),
    ),
    Operation(
        "get", "/v1/events", "Watch a whole stream.", {200: {}}, (errors.InvalidInput, errors.NoServer), WATCHING,
        media_types=("text/event-stream",),
    ),
    Operation(
        "post", "/v1/artifacts", "Upload bytes, to be named in a task's parameters.", {201: ref("Artifact")},
        (errors.InvalidInput, errors.PayloadTooLarge, errors.MalformedBody, errors.NoServer),
        (in_header("Content-Type", "What the bytes are, as image/png."),), upload=True,
    ),
    Operation(
        "get", "/v1/artifacts/{digest}", "Fetch an artifact, or a range of it.", {200: {}, 206: {}, 304: {}},
        (errors.ArtifactNotFound, errors.ArtifactExpired, errors.TaskIsForgotten, errors.NoServer),
        (DIGEST, in_header("If-None-Match", "ETag of a copy at hand."), in_header("Range", "Bytes wanted (RFC 9110).")),
        media_types=("application/octet-stream",),
    ),
    Operation(
        "get", "/v1/cluster", "The whole cluster: tasks by state, nodes, workers, queues, models, batches, schedules.",
        {200: CLUSTER}, ON_PAST, (AS_OF,), notes=UNHEARD,
    ),
    Operation(
        "get", "/v1/workers", "List the workers.", {200: listed("workers", ref("Worker"))}, ON_PAST, (AS_OF,),
        notes=UNHEARD,
    ),
    Operation(
        "get", "/v1/workers/{worker_id}", "Look at a worker.", {200: ref("Worker")},
        (errors.WorkerNotFound, errors.InvalidInput), (WORKER_ID,),
    ),
    Operation(
        "get", "/v1/workers/{worker_id}/logs", "The last lines of a worker's log.",
        {200: object_of(worker_id=TEXT, lines=array_of(TEXT))}, (errors.WorkerNotFound, *COMMANDED),
        (WORKER_ID, LINES),
    ),
    *(
        Operation(
            "post", f"/v1/workers/{{worker_id}}/{name}", summary, {202: ref("NodeWorker")},
            (errors.WorkerNotFound, *COMMANDED), (WORKER_ID,),
        )
        for name, summary in WORKER_COMMANDS.items()
    ),
    Operation(
        "get", "/v1/nodes", "List the nodes.", {200: listed("nodes", ref("Node"))}, ON_PAST, (AS_OF,), notes=UNHEARD,
    ),
    Operation(
        "get", "/v1/nodes/{node_id}", "Look at a node.", {200: ref("Node")},
        (errors.NodeNotFound, errors.InvalidInput), (NODE_ID,),
    ),
    Operation(
        "get", "/v1/nodes/{node_id}/status", "Ask a node's agent how it is now.", {200: ref("NodeStatus")},
        (errors.NodeNotFound, *COMMANDED), (NODE_ID,),
    ),
    Operation(
        "post", "/v1/nodes/{node_id}/labels", "Set a node's labels; null takes one away.", {200: ref("NodeStatus")},
        (*BODY, errors.NodeNotFound, *COMMANDED), (NODE_ID,), body="Labels",
    ),
    *(
        Operation(
            "post", f"/v1/nodes/{{node_id}}/{name}", summary, {202: ref("NodeStatus")},
            (errors.NodeNotFound, *COMMANDED), (NODE_ID,),
        )
        for name, summary in NODE_COMMANDS.items()
    ),
    Operation(
        "get", "/v1/nodes/{node_id}/models", "What a node has of models on its disk.", {200: DISK_USE},
        (errors.NodeNotFound, *COMMANDED), (NODE_ID,),
    ),
    Operation(
        "post", "/v1/nodes/{node_id}/models:prune", "Have a node drop the models that nothing needs.",
        {200: PRUNED}, (*BODY, errors.NodeNotFound, *COMMANDED), (NODE_ID,), body="Prune",
        notes="The body may be left out.",
    ),
    *AUDIT_OPERATIONS,
    *MODEL_OPERATIONS,
    *UPLOAD_OPERATIONS,
    *TIMELINE_OPERATIONS,
    Operation(
        "get", "/v1/queues", "What waits and runs, and for how long, by lane, model, API key and what is required.",
        {200: listed("queues", QUEUE)}, ON_PAST, (AS_OF,),
        notes="Of a moment: by lane and model, what had work or was paused.",
    ),
    Operation(
        "post", "/v1/queues:pause", "Hand out nothing more of what waits for a model; what runs goes on.",
        {200: PAUSES}, (*BODY, errors.QueueNotFound, errors.NoServer), body="QueueChange",
    ),
    Operation(
        "post", "/v1/queues:resume", "Hand out again what waits for a model.", {200: PAUSES},
        (*BODY, errors.QueueNotFound, errors.NoServer), body="QueueChange",
    ),
    Operation(
        "post", "/v1/queues:purge", "Cancel all that waits for a model.", {200: BULK}, ON_MANY, body="QueuePurge"
    ),
    *LOG_OPERATIONS,
    *ANALYTICS_OPERATIONS,
    Operation("get", "/v1/schema", "The tables that a query can read.", {200: ref("Schema")}),
    Operation(
        "get", "/v1/projections", "The read model's projections: what serves, and what is being made.",
        {200: object_of(projections=array_of(PROJECTION))}, (errors.ReadModelBroken,),
    ),
    Operation(
        "post", "/v1/projections/rebuild", "Make the read model anew from the log, or one of its projections.",
        {200: object_of(rebuilt=FLAG, elapsed_ms={"type": "number"}),
         202: object_of(projections=array_of(PROJECTION))},
        (*BODY, errors.ProjectionNotFound, errors.ReadModelBroken, errors.RebuildFailed, errors.NoServer),
        body="Rebuild",
        notes="The body may be left out. All are made before it answers; one is made in the background.",
    ),
    Operation(
        "post", "/v1/projections/snapshot", "Store a copy of the read model, for gateways that start.",
        {201: object_of(file=TEXT, checkpoints=COUNTS, size_bytes=WHOLE, sha256=TEXT)},
        (errors.ProjectionBuilding, errors.Conflict, errors.ReadModelBroken, errors.NoServer),
    ),
    Operation("get", "/healthz", "Whether the process lives.", {200: object_of(status=TEXT)}, open=True),
    Operation(
        "get", "/readyz", "Whether it can serve.", {200: object_of(status=TEXT, log=TEXT, read_model=TEXT)},
        (errors.NoServer, errors.ProjectionBehind), open=True,
    ),
    Operation("get", "/metrics", "Metrics for Prometheus.", {200: {}}, media_types=("text/plain",)),
    Operation("get", "/openapi.json", "This document.", {200: {"type": "object"}}),
    Operation("get", "/asyncapi.json", "The events, as AsyncAPI 3.0.", {200: {"type": "object"}}),
)  # fmt: skip
