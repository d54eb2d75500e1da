"""Rejected: the caller can act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.root import BitingLipError


class Rejected(BitingLipError):
    """The request is not one we can take; the caller can mend it."""

    code, status, exit_code = "rejected", 400, 2
    template = "The request was rejected."
    remedy = "Mend the request and send it again."


@dataclass(eq=False, kw_only=True)
class InvalidInput(Rejected):
    """A field of the request has a value that we refuse."""

    code, status = "invalid_input", 422
    template = "{field}: {problem}"
    remedy = "Mend the named field and send the request again."
    field: str
    problem: str


@dataclass(eq=False, kw_only=True)
class MalformedBody(Rejected):
    """The request's body is not JSON in UTF-8."""

    code = "malformed_body"
    template = "The body is not valid JSON in UTF-8: {problem}"
    remedy = "Send a JSON object encoded as UTF-8, with 'Content-Type: application/json'."
    problem: str


@dataclass(eq=False, kw_only=True)
class UnsupportedMediaType(Rejected):
    """The request's body has a media type that we do not read."""

    code, status = "unsupported_media_type", 415
    template = "The content type {media_type!r} is not accepted here."
    remedy = "Send 'Content-Type: application/json'."
    media_type: str


@dataclass(eq=False, kw_only=True)
class BackupUnusable(Rejected):
    """The folder is no whole backup of a log, or not an empty one to write it into."""

    code, status = "backup_unusable", 422
    template = "The folder {folder} cannot be used: {problem}."
    remedy = "Name a new folder to back up into, or one that a backup was written into to its end."
    folder: str
    problem: str


@dataclass(eq=False, kw_only=True)
class KeyUnusable(Rejected):
    """A file has no key that signs the log, or that shows who signed."""

    code, status = "key_unusable", 422
    template = "The key {path} cannot be used: {problem}."
    remedy = "Name a PEM file with an Ed25519 key: `bitinglip audit key` prints a gateway's public one."
    path: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ProofUnusable(Rejected):
    """A file is no proof, or has no kept heads."""

    code, status = "proof_unusable", 422
    template = "The file cannot be used: {problem}."
    remedy = "Name what `bitinglip audit proof`, `audit export`, or `events archive --output` has written, all of it."
    problem: str


@dataclass(eq=False, kw_only=True)
class LogExists(Rejected):
    """A log is to be restored where there is one, or a part of one."""

    code, status = "log_exists", 409
    template = "The server has a log already, or a part of one: {streams}."
    remedy = (
        "Restore into a server whose store is empty: stop it, move its store away, start it again (that is the way "
        "after a restore that ended half-way as well)."
    )
    streams: str


@dataclass(eq=False, kw_only=True)
class PayloadTooLarge(Rejected):
    """What was sent is over a size limit."""

    code, status = "payload_too_large", 413
    template = "{what} is larger than the limit of {limit_bytes} bytes."
    remedy = "Send less, or raise the limit (`bitinglip config show` names it)."
    what: str
    limit_bytes: int


@dataclass(eq=False, kw_only=True)
class UnknownModel(Rejected):
    """No worker has ever registered the model that the task names, and no node has it."""

    code, status = "unknown_model", 422
    template = (
        "model: no worker serves {model!r} as {kind!r}. Served as {kind!r}: {known}. "
        "To have it fetched: `bitinglip model download {model}`."
    )
    remedy = "Name a served model, or have a node fetch this one; with `models.auto_download` a task does that itself."
    model: str
    kind: str
    known: str


@dataclass(eq=False, kw_only=True)
class TooManyQueues(Rejected):
    """What the task requires, or whose it is, would need one more queue than there may be."""

    code, status = "too_many_queues", 422
    template = "requires: the task would need a queue of its own, and there are {most} queues already."
    remedy = "Ask for what other tasks ask for as well, or raise gateway.queues_most."
    most: int


@dataclass(eq=False, kw_only=True)
class InvalidReference(Rejected):
    """A model reference that is not `org/name[@revision]`."""

    code, status = "invalid_reference", 422
    template = "model: {reference!r} is not a model reference: {problem}."
    remedy = "Write a model as 'name', 'org/name' or 'org/name@revision'."
    reference: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ModelNotFound(Rejected):
    """A model that should be served is not on this machine."""

    code, status = "model_not_found", 404
    template = "The model {reference!r} is not on this machine (looked in {looked_in})."
    remedy = "Give its folder (`--model NAME=PATH`), or put it into the models directory or the hub's cache."
    reference: str
    looked_in: str


@dataclass(eq=False, kw_only=True)
class TaskNotFound(Rejected):
    """No task of this id is in the log."""

    code, status = "task_not_found", 404
    template = "There is no task {task_id}."
    remedy = "Look at the id; `bitinglip task list` lists the tasks."
    task_id: str


@dataclass(eq=False, kw_only=True)
class UnknownEventType(Rejected):
    """No event type has this name."""

    code, status = "unknown_event_type", 404
    template = "There is no event type {name!r}."
    remedy = "`bitinglip events schema` prints all of them."
    name: str


@dataclass(eq=False, kw_only=True)
class NodeNotFound(Rejected):
    """No node of this name ever said something."""

    code, status = "node_not_found", 404
    template = "There is no node {node_id}."
    remedy = "Look at the name; `bitinglip node list` lists the nodes."
    node_id: str


@dataclass(eq=False, kw_only=True)
class WorkerNotFound(Rejected):
    """No worker of this name ever said something."""

    code, status = "worker_not_found", 404
    template = "There is no worker {worker_id}."
    remedy = "Look at the name; `bitinglip worker list` lists the workers."
    worker_id: str


@dataclass(eq=False, kw_only=True)
class CommandRefused(Rejected):
    """A node does not do what it was asked to."""

    code, status = "command_refused", 409
    template = "The node refuses: {problem}."
    remedy = "Look at the node's state first: `bitinglip node show NODE`."
    problem: str


@dataclass(eq=False, kw_only=True)
class NodeTaken(Rejected):
    """Another agent already runs under this node's name."""

    code, status = "node_taken", 409
    template = "An agent of the node {node_id} already runs."
    remedy = "Stop the other one, or give this one a name of its own (`worker.node`)."
    node_id: str


@dataclass(eq=False, kw_only=True)
class BatchNotFound(Rejected):
    """No batch of this id is in the log."""

    code, status = "batch_not_found", 404
    template = "There is no batch {batch_id}."
    remedy = "Look at the id; `bitinglip batch list` lists the batches."
    batch_id: str


@dataclass(eq=False, kw_only=True)
class BatchIsClosed(Rejected):
    """A batch that is closed was to get more tasks."""

    code, status = "batch_is_closed", 409
    template = "The batch {batch_id} is closed and takes no more tasks; {taken} of this request's were taken before."
    remedy = "Put the other tasks into a new batch."
    batch_id: str
    taken: int


@dataclass(eq=False, kw_only=True)
class ScheduleNotFound(Rejected):
    """No schedule of this id is in the log, or it was deleted."""

    code, status = "schedule_not_found", 404
    template = "There is no schedule {schedule_id}."
    remedy = "Look at the id; `bitinglip schedule list` lists the schedules."
    schedule_id: str


@dataclass(eq=False, kw_only=True)
class QueueNotFound(Rejected):
    """A model without queues: no worker has registered it, and no task was put into a queue of its own for it."""

    code, status = "queue_not_found", 404
    template = "There is no queue for the model {model}."
    remedy = "Look at the reference; `bitinglip queue list` lists the queues, `GET /v1/models` the models."
    model: str


@dataclass(eq=False, kw_only=True)
class ArtifactNotFound(Rejected):
    """No artifact of this digest is in the object store."""

    code, status = "artifact_not_found", 404
    template = "There is no artifact {digest}."
    remedy = "Take the digest from the task's result, or upload the bytes: `POST /v1/artifacts`."
    digest: str


@dataclass(eq=False, kw_only=True)
class ArchiveFileNotFound(Rejected):
    """The index of the archive has no such file."""

    code, status = "archive_file_not_found", 404
    template = "The archive has no file {file}."
    remedy = "`GET /v1/log/archive` lists the files."
    file: str


@dataclass(eq=False, kw_only=True)
class ArtifactExpired(Rejected):
    """An artifact of this digest was stored, and its lifetime is over."""

    code, status = "artifact_expired", 410
    template = "The artifact {digest} has expired."
    remedy = "Run the task again, or upload the bytes again; `nats.artifact_lifetime_days` says how long they are kept."
    digest: str


@dataclass(eq=False, kw_only=True)
class IllegalTransition(Rejected):
    """The task's state does not allow the command."""

    code, status = "illegal_transition", 409
    template = "Task {task_id} is {state}: it cannot {action}."
    remedy = "Look at the task's state first: `bitinglip task get ID`."
    task_id: str
    state: str
    action: str


@dataclass(eq=False, kw_only=True)
class TaskIsForgotten(Rejected):
    """What a private task was asked and answered cannot be read any more: its key was destroyed."""

    code, status = "task_forgotten", 410
    template = "Task {task_id} was forgotten: what it was asked and what it answered cannot be read any more."
    remedy = "Nothing brings it back; ask for the task anew. Its metadata is at `bitinglip task get ID`."
    task_id: str


@dataclass(eq=False, kw_only=True)
class TaskNotPrivate(Rejected):
    """A task that is not private is to be forgotten: it is in the log in clear, which never changes."""

    code, status = "task_not_private", 409
    template = "Task {task_id} is not private: what it was asked is in the log, which is never changed."
    remedy = "Ask for tasks that are to be forgotten one day with `private`, or set `tasks.private`."
    task_id: str


@dataclass(eq=False, kw_only=True)
class NoResult(Rejected):
    """The result of a task is asked for, and it has none."""

    code, status = "no_result", 409
    template = "Task {task_id} is {state}: it has no result."
    remedy = "Wait for its end (`GET /v1/tasks/ID/events`); a task that has not succeeded has none."
    task_id: str
    state: str


@dataclass(eq=False, kw_only=True)
class IdempotencyMismatch(Rejected):
    """An idempotency key was used again with another request."""

    code, status = "idempotency_mismatch", 422
    template = "Idempotency-Key: {key!r} was already used for another request ({made})."
    remedy = "Use a new key for a new request; a key repeats only the very same one."
    key: str
    made: str
    """What that request made, as `task 01JZ…`."""


@dataclass(eq=False, kw_only=True)
class QueryRefused(Rejected):
    """The SQL is not one read-only statement, or DuckDB refused it."""

    code, status = "query_refused", 422
    template = "The query was refused: {problem}"
    remedy = "Send one SELECT over the documented tables (`bitinglip query --schema`)."
    problem: str


@dataclass(eq=False, kw_only=True)
class QueryTimeout(Rejected):
    """The SQL ran longer than its limit."""

    code, status = "query_timeout", 422
    template = "The query ran longer than {limit_s} s and was stopped."
    remedy = "Narrow the query, or raise `projections.query_timeout_s`."
    limit_s: float


@dataclass(eq=False, kw_only=True)
class RouteNotFound(Rejected):
    """There is nothing at this path."""

    code, status = "not_found", 404
    template = "There is nothing at {path}."
    remedy = "`/openapi.json` lists the paths."
    path: str


@dataclass(eq=False, kw_only=True)
class MethodNotAllowed(Rejected):
    """The path exists, but not with this method."""

    code, status = "method_not_allowed", 405
    template = "{method} is not allowed at {path}."
    remedy = "`/openapi.json` lists the methods of each path."
    method: str
    path: str


@dataclass(eq=False, kw_only=True)
class InvalidConfig(Rejected):
    """A setting has a value that we refuse."""

    code, status = "invalid_config", 400
    template = "Configuration: {problem}"
    remedy = "`bitinglip config show` lists every setting with its meaning and where its value came from."
    problem: str


@dataclass(eq=False, kw_only=True)
class ProjectionFileBusy(Rejected):
    """Another process has the read model's file open."""

    code, status = "projection_file_busy", 409
    template = "The read model's file {path} is in use by another process: {problem}"
    remedy = "Stop the other gateway, or give each its own file (`projections.path`)."
    path: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ProjectionFileForeign(Rejected):
    """The read model's file is a database of something else."""

    code, status = "projection_file_foreign", 409
    template = "The file {path} is a database of something else; it is left as it is."
    remedy = "Name another file for the read model (`projections.path`), or move that one away."
    path: str


@dataclass(eq=False, kw_only=True)
class ProjectionFileRefused(Rejected):
    """The machine does not let us read or write the read model's file."""

    code, status = "projection_file_refused", 409
    template = "The read model's file {path} cannot be used: {problem}"
    remedy = "Make room there, or let the gateway's user read and write it, or name another file (`projections.path`)."
    path: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ProjectionNotFound(Rejected):
    """There is no such projection."""

    code, status = "projection_not_found", 404
    template = "There is no projection {name!r}."
    remedy = "Look at the list: `GET /v1/projections`."
    name: str


@dataclass(eq=False, kw_only=True)
class IncompatibleStream(Rejected):
    """A stream or consumer exists with settings that cannot be changed in place."""

    code, status = "incompatible_stream", 409
    template = "{name} on the NATS server has {setting} that cannot be changed to what this version needs: {problem}"
    remedy = "Use a server of its own for BitingLip, or move the old data aside (docs/operations.md)."
    name: str
    setting: str
    problem: str


@dataclass(eq=False, kw_only=True)
class ServerTooOld(Rejected):
    """The nats-server lacks what the log needs."""

    code, status = "server_too_old", 400
    template = "The nats-server is version {version}; at least {least} is needed."
    remedy = "Upgrade it, or let `bitinglip up` start its own."
    version: str
    least: str


@dataclass(eq=False, kw_only=True)
class ServerTooNarrow(Rejected):
    """The nats-server takes no message that is as large as an event may be."""

    code, status = "server_too_narrow", 400
    template = "The nats-server takes messages of at most {limit_bytes} bytes; the log needs {least_bytes}."
    remedy = "Set `max_payload: 1MB` in its configuration."
    limit_bytes: int
    least_bytes: int


@dataclass(eq=False, kw_only=True)
class ServerBinaryMissing(Rejected):
    """No nats-server binary was found on this machine."""

    code, status = "server_binary_missing", 400
    template = "No usable nats-server binary was found ({looked_in})."
    remedy = "Run `make nats-server`, set BITINGLIP_NATS_SERVER to its path, or use --nats-url."
    looked_in: str
