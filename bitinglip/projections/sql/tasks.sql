-- Grain: one row per task whose `task.submitted` is in the log.
-- Units: times are the events' own `time`, UTC; `_ms` are milliseconds; tokens are counts.
--
-- The state does not depend on the order in which events are met: it is that of the greatest `state_key`,
-- attempt * 4 + phase (0 waits for its time, 1 is queued, 2 runs, 3 failed and waits for the next attempt). A terminal
-- event has the greatest key of all, and the first of them stays. So a `task.queued` of a timer that fired too late
-- changes nothing.
--
-- The blocks that apply a batch are run in the order below, each only if the batch has events for it: planning a
-- statement costs milliseconds however few its rows are. A batch of nothing but progress has the last one to itself,
-- which does what the others would do.
--
-- What an aggregate is to pass over is null here: its `filter` would cost some 70 us, however few the rows are.
--
-- streams: TASKS
-- parts: setbacks

-- name: table
create table self.tasks (
    task_id varchar not null,
    state varchar,
    kind varchar,
    model varchar,
    lane varchar,
    key_id varchar,
    idempotency_key varchar,
    metadata json,
    params json,
    params_ref json,
    request_sha256 varchar,
    retry_of varchar,
    retried_as json,
    batch_id varchar,
    depends_on json,
    on_failure varchar,
    max_attempts integer,
    run_at timestamp,
    expires_at timestamp,
    timeout_ms bigint,
    vram_gb double,
    labels json,
    attempt integer,
    worker_id varchar,
    node_id varchar,
    device varchar,
    revision varchar,
    submitted_at timestamp,
    queued_at timestamp,
    queued_reason varchar,
    started_at timestamp,
    finished_at timestamp,
    wait_ms bigint,
    run_ms double,
    load_ms double,
    result json,
    result_ref json,
    failure json,
    failures integer,
    retry_at timestamp,
    input_tokens bigint,
    output_tokens bigint,
    versions json,
    cancel_requested boolean,
    progress_step bigint,
    progress_total bigint,
    progress_unit varchar,
    private boolean,
    forgotten_at timestamp,
    submitted_sequence ubigint,
    last_sequence ubigint,
    state_key integer
);

comment on table self.tasks is 'Tasks; one row per task.';
comment on column self.tasks.task_id is 'Identifier of the task (ULID).';
comment on column self.tasks.state is 'scheduled, queued, running, succeeded, failed, cancelled, expired or dead_lettered.';
comment on column self.tasks.kind is 'What is asked, as text-generation.';
comment on column self.tasks.model is 'Reference of the model, as the caller gave it.';
comment on column self.tasks.lane is 'interactive, normal or batch.';
comment on column self.tasks.key_id is 'API key that asked for it; null without keys.';
comment on column self.tasks.idempotency_key is 'The caller''s idempotency key; null if none was given.';
comment on column self.tasks.metadata is 'The caller''s own labels.';
comment on column self.tasks.params is 'Parameters; null when they are in an artifact.';
comment on column self.tasks.params_ref is 'Artifact that holds the parameters: sha256, size_bytes, media_type.';
comment on column self.tasks.request_sha256 is 'Digest of the request.';
comment on column self.tasks.retry_of is 'The task that this one asks for again; null for any other.';
comment on column self.tasks.retried_as is 'Tasks that ask for this one again, in their order; empty for none.';
comment on column self.tasks.batch_id is 'Batch that it was asked for with; null for none.';
comment on column self.tasks.depends_on is 'Tasks whose end it was to wait for; null for none.';
comment on column self.tasks.on_failure is 'If one of them does not succeed: cancel or run; null without depends_on.';
comment on column self.tasks.max_attempts is 'Attempts that may fail before the task is dead-lettered.';
comment on column self.tasks.run_at is 'Not to start before (UTC); null for at once.';
comment on column self.tasks.expires_at is 'Expires if not started by then (UTC).';
comment on column self.tasks.timeout_ms is 'Longest that one attempt may run, in milliseconds.';
comment on column self.tasks.vram_gb is 'GiB that its device must have: as asked for, or more since it ran out of memory on a smaller one; 0 for any.';
comment on column self.tasks.labels is 'Labels that its worker must have; empty for any.';
comment on column self.tasks.attempt is 'Number of the latest attempt; 0 before the first.';
comment on column self.tasks.worker_id is 'Worker of the latest attempt.';
comment on column self.tasks.node_id is 'Machine of the latest attempt.';
comment on column self.tasks.device is 'Device of the latest attempt, as cuda:0.';
comment on column self.tasks.revision is 'Revision of the model in the latest attempt.';
comment on column self.tasks.submitted_at is 'When it was accepted (UTC).';
comment on column self.tasks.queued_at is 'When it was last ready to run (UTC).';
comment on column self.tasks.queued_reason is 'Why it was last made ready: scheduled, released, retry or bigger_card; null if it was so from the start.';
comment on column self.tasks.started_at is 'When its latest attempt was assigned (UTC).';
comment on column self.tasks.finished_at is 'When it ended (UTC); null while it has not.';
comment on column self.tasks.wait_ms is 'Milliseconds from being ready to the assignment, in the latest attempt.';
comment on column self.tasks.run_ms is 'Milliseconds on the device, in the last attempt that ended.';
comment on column self.tasks.load_ms is 'Milliseconds that the attempt that succeeded waited for its model.';
comment on column self.tasks.result is 'Result; null before success and when it is in an artifact.';
comment on column self.tasks.result_ref is 'Artifact that holds the result: sha256, size_bytes, media_type.';
comment on column self.tasks.failure is 'Latest failure: kind, message, retryable.';
comment on column self.tasks.failures is 'Failed attempts that count against max_attempts.';
comment on column self.tasks.retry_at is 'When the next attempt may begin (UTC); null unless one is waited for.';
comment on column self.tasks.input_tokens is 'Tokens that went in; null before success.';
comment on column self.tasks.output_tokens is 'Tokens that came out; null before success.';
comment on column self.tasks.versions is 'Versions of the libraries that made the result.';
comment on column self.tasks.cancel_requested is 'Whether somebody asked for it to stop while it ran.';
comment on column self.tasks.progress_step is 'Step that the latest attempt has reached.';
comment on column self.tasks.progress_total is 'Steps that it will take; null if not known.';
comment on column self.tasks.progress_unit is 'What a step is, as token.';
comment on column self.tasks.private is 'Whether parameters and result are encrypted artifacts, with a key of the task''s own.';
comment on column self.tasks.forgotten_at is 'When its key was destroyed (UTC); null while it can be read.';
comment on column self.tasks.submitted_sequence is 'Sequence of its task.submitted in TASKS.';
comment on column self.tasks.last_sequence is 'Sequence of its last event in TASKS.';
comment on column self.tasks.state_key is 'How far the task has come: attempt * 4 + phase, greatest when it has ended.';

-- name: key
alter table self.tasks add primary key (task_id);

-- name: change
-- when: task.*
create or replace temp table task_changes as
with marked as (
    select
        *,
        if(type = 'task.submitted', sequence, null) as submitting,
        if(makes_ready, sequence, null) as readying,
        if(type = 'task.assigned', sequence, null) as assigning,
        if(type = 'task.progressed', sequence, null) as progressing,
        if(type in ('task.failed', 'task.dead_lettered'), sequence, null) as failing,
        if(state_key = 2147483647, sequence, null) as ending
    from batch
    where starts_with(type, 'task.')
),
told as (
    select
        about as task_id,
        max(sequence) as last_sequence,
        max(state_key) as state_key,
        min(submitting) as submitted_sequence,
        arg_min(time, submitting) as submitted_at,
        arg_min(data, submitting) as submitted,
        max(if(makes_ready, state_key, null)) as ready_key,
        arg_max(time, readying) as queued_at,
        arg_max(reason, readying) as queued_reason,
        max(if(type = 'task.failed', next_vram_gb, null)) as next_vram_gb,
        max(if(type = 'task.assigned', attempt, null)) as attempt,
        arg_max(time, assigning) as started_at,
        arg_max(data, assigning) as assigned,
        max(if(type = 'task.progressed', attempt, null)) as progressed_attempt,
        arg_max(data, progressing) as progressed,
        arg_max(data, failing) as failed,
        arg_min(type, ending) as ended_type,
        arg_min(time, ending) as finished_at,
        arg_min(data, ending) as ended,
        count_if(
            type = 'task.dead_lettered' or (type = 'task.failed' and failure_kind is distinct from 'worker_stopped')
        ) as failures,
        count_if(type = 'task.cancel_requested') > 0 as cancel_requested,
        min(if(type = 'task.forgotten', time, null)) as forgotten_at
    from marked
    group by task_id
)
select
    * exclude (assigned, progressed, failed, ended, a, p, f, r),
    case
        when ended_type is not null then ended_type[6:]
        when state_key % 4 = 1 then 'queued'
        when state_key % 4 = 2 then 'running'
        else 'scheduled'
    end as state,
    a.worker_id, a.node_id, a.device, a.revision, a.wait_ms,
    coalesce(r.run_ms, f.run_ms) as run_ms,
    if(succeeded, coalesce(r.load_ms, 0), null) as load_ms,
    r.result, r.result_ref, f.failure,
    if(state_key % 4 = 3 and ended_type is null, f.retry_at, null) as retry_at,
    if(succeeded, coalesce(r.usage.input_tokens, 0), null) as input_tokens,
    if(succeeded, coalesce(r.usage.output_tokens, 0), null) as output_tokens,
    r.versions,
    p.step as progress_step, p.total as progress_total, p.unit as progress_unit
from (
    select
        *,
        ended_type = 'task.succeeded' as succeeded,
        json_transform(assigned, '{
            "worker_id": "VARCHAR", "node_id": "VARCHAR", "device": "VARCHAR", "revision": "VARCHAR", "wait_ms": "BIGINT"
        }') as a,
        if(
            progressed_attempt >= coalesce(attempt, 0),
            json_transform(progressed, '{"step": "BIGINT", "total": "BIGINT", "unit": "VARCHAR"}'),
            null
        ) as p,
        json_transform(failed, '{"failure": "JSON", "run_ms": "DOUBLE", "retry_at": "TIMESTAMPTZ"}') as f,
        json_transform(ended, '{
            "run_ms": "DOUBLE", "load_ms": "DOUBLE", "result": "JSON", "result_ref": "JSON", "versions": "JSON",
            "usage": {"input_tokens": "BIGINT", "output_tokens": "BIGINT"}
        }') as r
    from told
);

-- name: settle_queued
-- when: task.queued
create or replace temp table task_changes as
with stale as (
    select late.sequence
    from batch as late join batch as earlier using (about)
    where late.type = 'task.queued' and earlier.sequence < late.sequence and earlier.state_key >= late.state_key
),
settled as (
    select
        about as task_id,
        max(state_key) as ready_key,
        arg_max(time, sequence) as queued_at,
        arg_max(reason, sequence) as queued_reason
    from batch
    where makes_ready and sequence not in (from stale)
    group by about
)
select
    task_changes.* replace (
        settled.ready_key as ready_key, settled.queued_at as queued_at, settled.queued_reason as queued_reason
    )
from task_changes left join settled using (task_id);

-- name: known
-- when: task.submitted task.failed
create or replace temp table known_tasks as
select task_id, state_key, queued_at, started_at
from self.tasks
where task_id in (select about from batch where type in ('task.submitted', 'task.failed'));

-- name: setbacks
-- when: task.failed

-- name: add
-- when: task.submitted
insert into self.tasks
select
    task_id, state, s.kind, s.model, s.lane, s.key_id, s.idempotency_key, coalesce(s.metadata, '{}'), s.params,
    s.params_ref, s.request_sha256, s.retry_of, '[]', s.batch_id, if(json_type(s.depends_on) = 'ARRAY', s.depends_on, null), s.on_failure,
    coalesce(s.retry.max_attempts, 3), s.run_at, s.expires_at, s.timeout_ms,
    greatest(s.requires.vram_gb, next_vram_gb, 0), coalesce(s.requires.labels, '[]'),
    coalesce(attempt, 0), worker_id, node_id, device, revision, submitted_at, queued_at, queued_reason, started_at,
    finished_at, wait_ms, run_ms, load_ms, result, result_ref, failure, failures, retry_at, input_tokens, output_tokens,
    versions, cancel_requested, progress_step, progress_total, progress_unit, coalesce(s.private, false), forgotten_at,
    submitted_sequence, last_sequence, state_key
from (
    select
        *,
        json_transform(submitted, '{
            "kind": "VARCHAR", "model": "VARCHAR", "lane": "VARCHAR", "key_id": "VARCHAR", "idempotency_key": "VARCHAR",
            "metadata": "JSON", "params": "JSON", "params_ref": "JSON", "request_sha256": "VARCHAR",
            "retry": {"max_attempts": "INTEGER"}, "run_at": "TIMESTAMPTZ", "expires_at": "TIMESTAMPTZ",
            "timeout_ms": "BIGINT", "requires": {"vram_gb": "DOUBLE", "labels": "JSON"}, "retry_of": "VARCHAR", "batch_id": "VARCHAR", "depends_on": "JSON", "on_failure": "VARCHAR",
            "private": "BOOLEAN"
        }') as s
    from task_changes anti join known_tasks using (task_id)
    where submitted_sequence is not null
);

-- name: retried
-- when: retry
update self.tasks
set retried_as = to_json(list_concat(from_json(tasks.retried_as, '["VARCHAR"]'), new.task_ids))
from (
    select submitted ->> '$.retry_of' as task_id, list(task_id order by submitted_sequence) as task_ids
    from task_changes anti join known_tasks using (task_id)
    where submitted ->> '$.retry_of' is not null
    group by all
) as new
where new.task_id = tasks.task_id;

-- name: update
-- when: task.*
update self.tasks
set
    state = if(new.state_key > tasks.state_key, new.state, tasks.state),
    state_key = greatest(new.state_key, tasks.state_key),
    attempt = coalesce(new.attempt, tasks.attempt),
    worker_id = if(new.attempt is null, tasks.worker_id, new.worker_id),
    node_id = if(new.attempt is null, tasks.node_id, new.node_id),
    device = if(new.attempt is null, tasks.device, new.device),
    revision = if(new.attempt is null, tasks.revision, new.revision),
    vram_gb = greatest(tasks.vram_gb, new.next_vram_gb),
    queued_at = if(new.ready_key > tasks.state_key, new.queued_at, tasks.queued_at),
    queued_reason = if(new.ready_key > tasks.state_key, new.queued_reason, tasks.queued_reason),
    started_at = coalesce(new.started_at, tasks.started_at),
    finished_at = coalesce(tasks.finished_at, new.finished_at),
    wait_ms = if(new.attempt is null, tasks.wait_ms, new.wait_ms),
    run_ms = coalesce(new.run_ms, tasks.run_ms),
    load_ms = coalesce(new.load_ms, tasks.load_ms),
    result = coalesce(new.result, tasks.result),
    result_ref = coalesce(new.result_ref, tasks.result_ref),
    failure = coalesce(new.failure, tasks.failure),
    failures = tasks.failures + new.failures,
    retry_at = if(new.state_key > tasks.state_key, new.retry_at, tasks.retry_at),
    input_tokens = coalesce(new.input_tokens, tasks.input_tokens),
    output_tokens = coalesce(new.output_tokens, tasks.output_tokens),
    versions = coalesce(new.versions, tasks.versions),
    cancel_requested = tasks.cancel_requested or new.cancel_requested,
    forgotten_at = coalesce(tasks.forgotten_at, new.forgotten_at),
    progress_step = if(new.attempt is null and new.progressed_attempt is null, tasks.progress_step, new.progress_step),
    progress_total = if(new.attempt is null and new.progressed_attempt is null, tasks.progress_total, new.progress_total),
    progress_unit = if(new.attempt is null and new.progressed_attempt is null, tasks.progress_unit, new.progress_unit),
    last_sequence = new.last_sequence
from task_changes as new
where new.submitted_sequence is null and new.task_id = tasks.task_id;

-- name: progress
-- alone: task.progressed
update self.tasks
set
    progress_step = if(new.attempt is null, tasks.progress_step, new.p.step),
    progress_total = if(new.attempt is null, tasks.progress_total, new.p.total),
    progress_unit = if(new.attempt is null, tasks.progress_unit, new.p.unit),
    last_sequence = new.last_sequence
from (
    select
        about as task_id,
        max(attempt) as attempt,
        max(sequence) as last_sequence,
        json_transform(arg_max(data, sequence), '{"step": "BIGINT", "total": "BIGINT", "unit": "VARCHAR"}') as p
    from batch
    group by about
) as new
where new.task_id = tasks.task_id;
