-- Grain: one row per task whose `task.submitted` is in the log.
-- Units: times are the events' own `time`, UTC; `_ms` are milliseconds; tokens are counts.
--
-- The state does not depend on the order in which events are met: it is that of the greatest `state_key`,
-- attempt * 4 + phase (0 waits for its time, 1 is queued, 2 runs, 3 failed and waits for the next attempt). A terminal
-- event has the greatest key of all, and the first of them stays. So a `task.queued` of a timer that fired too late
-- changes nothing.

-- name: table
create table tasks (
    task_id varchar primary key,
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
    max_attempts integer,
    run_at timestamp,
    expires_at timestamp,
    timeout_ms bigint,
    attempt integer,
    worker_id varchar,
    node_id varchar,
    device varchar,
    revision varchar,
    submitted_at timestamp,
    queued_at timestamp,
    started_at timestamp,
    finished_at timestamp,
    wait_ms bigint,
    run_ms double,
    load_ms double,
    result json,
    result_ref json,
    failure json,
    failures integer,
    input_tokens bigint,
    output_tokens bigint,
    versions json,
    cancel_requested boolean,
    progress_step bigint,
    progress_total bigint,
    progress_unit varchar,
    submitted_sequence ubigint,
    last_sequence ubigint,
    state_key integer
);

comment on table tasks is 'Tasks; one row per task.';
comment on column tasks.task_id is 'Identifier of the task (ULID).';
comment on column tasks.state is 'scheduled, queued, running, succeeded, failed, cancelled, expired or dead_lettered.';
comment on column tasks.kind is 'What is asked, as text-generation.';
comment on column tasks.model is 'Reference of the model, as the caller gave it.';
comment on column tasks.lane is 'interactive, normal or batch.';
comment on column tasks.key_id is 'API key that asked for it; null without keys.';
comment on column tasks.idempotency_key is 'The caller''s idempotency key; null if none was given.';
comment on column tasks.metadata is 'The caller''s own labels.';
comment on column tasks.params is 'Parameters; null when they are in an artifact.';
comment on column tasks.params_ref is 'Artifact that holds the parameters: sha256, size_bytes, media_type.';
comment on column tasks.request_sha256 is 'Digest of the request.';
comment on column tasks.max_attempts is 'Attempts that may fail before the task is dead-lettered.';
comment on column tasks.run_at is 'Not to start before (UTC); null for at once.';
comment on column tasks.expires_at is 'Expires if not started by then (UTC).';
comment on column tasks.timeout_ms is 'Longest that one attempt may run, in milliseconds.';
comment on column tasks.attempt is 'Number of the latest attempt; 0 before the first.';
comment on column tasks.worker_id is 'Worker of the latest attempt.';
comment on column tasks.node_id is 'Machine of the latest attempt.';
comment on column tasks.device is 'Device of the latest attempt, as cuda:0.';
comment on column tasks.revision is 'Revision of the model in the latest attempt.';
comment on column tasks.submitted_at is 'When it was accepted (UTC).';
comment on column tasks.queued_at is 'When it was last ready to run (UTC).';
comment on column tasks.started_at is 'When its latest attempt was assigned (UTC).';
comment on column tasks.finished_at is 'When it ended (UTC); null while it has not.';
comment on column tasks.wait_ms is 'Milliseconds from being ready to the assignment, in the latest attempt.';
comment on column tasks.run_ms is 'Milliseconds on the device, in the last attempt that ended.';
comment on column tasks.load_ms is 'Milliseconds that the attempt that succeeded waited for its model.';
comment on column tasks.result is 'Result; null before success and when it is in an artifact.';
comment on column tasks.result_ref is 'Artifact that holds the result: sha256, size_bytes, media_type.';
comment on column tasks.failure is 'Latest failure: kind, message, retryable.';
comment on column tasks.failures is 'Failed attempts that count against max_attempts.';
comment on column tasks.input_tokens is 'Tokens that went in; null before success.';
comment on column tasks.output_tokens is 'Tokens that came out; null before success.';
comment on column tasks.versions is 'Versions of the libraries that made the result.';
comment on column tasks.cancel_requested is 'Whether somebody asked for it to stop while it ran.';
comment on column tasks.progress_step is 'Step that the latest attempt has reached.';
comment on column tasks.progress_total is 'Steps that it will take; null if not known.';
comment on column tasks.progress_unit is 'What a step is, as token.';
comment on column tasks.submitted_sequence is 'Sequence of its task.submitted in TASKS.';
comment on column tasks.last_sequence is 'Sequence of its last event in TASKS.';
comment on column tasks.state_key is 'How far the task has come: attempt * 4 + phase, greatest when it has ended.';

-- name: apply
create or replace temp table task_changes as
with facts as (
    select
        about as task_id, sequence, type, failure_kind,
        case type
            when 'task.submitted' then if(delayed, 4, 5)
            when 'task.queued' then attempt * 4 + 1
            when 'task.assigned' then attempt * 4 + 2
            when 'task.failed' then if(delayed, attempt * 4 + 3, 2147483647)
            when 'task.succeeded' then 2147483647
            when 'task.cancelled' then 2147483647
            when 'task.expired' then 2147483647
            when 'task.dead_lettered' then 2147483647
        end as state_key
    from batch
    where starts_with(type, 'task.') and stream = 'TASKS'
), stale as (
    select late.sequence
    from facts as late
    join facts as earlier on earlier.task_id = late.task_id
    where late.type = 'task.queued' and earlier.sequence < late.sequence and earlier.state_key >= late.state_key
), told as (
    select
        task_id,
        max(sequence) as last_sequence,
        max(state_key) as state_key,
        max(if(type = 'task.queued' or state_key = 5, state_key, null)) as queued_key,
        min(if(type = 'task.submitted', sequence, null)) as submitted_sequence,
        max(if(type = 'task.assigned', sequence, null)) as assigned_sequence,
        max(if(type = 'task.queued' or state_key = 5, sequence, null)) as queued_sequence,
        max(if(type = 'task.progressed', sequence, null)) as progressed_sequence,
        max(if(type in ('task.failed', 'task.dead_lettered'), sequence, null)) as failed_sequence,
        min(if(state_key = 2147483647, sequence, null)) as ended_sequence,
        count_if(
            type = 'task.dead_lettered' or (type = 'task.failed' and failure_kind is distinct from 'worker_stopped')
        ) as failures,
        count_if(type = 'task.cancel_requested') > 0 as cancel_requested
    from facts
    where sequence not in (from stale)
    group by task_id
)
select
    task_id,
    case
        when ended.type is not null then ended.type[6:]
        when state_key % 4 = 1 then 'queued'
        when state_key % 4 = 2 then 'running'
        else 'scheduled'
    end as state,
    state_key,
    queued_key,
    json_transform(submitted.data, '{
        "kind": "VARCHAR", "model": "VARCHAR", "lane": "VARCHAR", "key_id": "VARCHAR", "idempotency_key": "VARCHAR",
        "metadata": "JSON", "params": "JSON", "params_ref": "JSON", "request_sha256": "VARCHAR",
        "retry": {"max_attempts": "INTEGER"}, "run_at": "TIMESTAMPTZ", "expires_at": "TIMESTAMPTZ",
        "timeout_ms": "BIGINT"
    }') as s,
    json_transform(assigned.data, '{
        "worker_id": "VARCHAR", "node_id": "VARCHAR", "device": "VARCHAR", "revision": "VARCHAR", "wait_ms": "BIGINT"
    }') as a,
    json_transform(progressed.data, '{"step": "BIGINT", "total": "BIGINT", "unit": "VARCHAR"}') as p,
    json_transform(failed.data, '{"failure": "JSON", "run_ms": "DOUBLE"}') as f,
    json_transform(ended.data, '{
        "run_ms": "DOUBLE", "load_ms": "DOUBLE", "result": "JSON", "result_ref": "JSON", "versions": "JSON",
        "usage": {"input_tokens": "BIGINT", "output_tokens": "BIGINT"}
    }') as r,
    assigned.attempt as attempt,
    submitted.time as submitted_at,
    queued.time as queued_at,
    assigned.time as started_at,
    ended.time as finished_at,
    if(ended.type = 'task.succeeded', coalesce(r['load_ms'], 0), null) as load_ms,
    if(ended.type = 'task.succeeded', coalesce(r['usage']['input_tokens'], 0), null) as input_tokens,
    if(ended.type = 'task.succeeded', coalesce(r['usage']['output_tokens'], 0), null) as output_tokens,
    failures,
    cancel_requested,
    submitted_sequence,
    last_sequence
from told
left join batch as submitted on submitted.sequence = submitted_sequence
left join batch as assigned on assigned.sequence = assigned_sequence
left join batch as queued on queued.sequence = queued_sequence
left join batch as progressed
    on progressed.sequence = progressed_sequence and progressed_sequence > coalesce(assigned_sequence, 0)
left join batch as failed on failed.sequence = failed_sequence
left join batch as ended on ended.sequence = ended_sequence;

insert into tasks
select
    task_id, state, s.kind, s.model, s.lane, s.key_id, s.idempotency_key, coalesce(s.metadata, '{}'), s.params,
    s.params_ref, s.request_sha256, coalesce(s.retry.max_attempts, 3), s.run_at, s.expires_at, s.timeout_ms,
    coalesce(attempt, 0), a.worker_id, a.node_id, a.device, a.revision, submitted_at, queued_at, started_at, finished_at,
    a.wait_ms, coalesce(r.run_ms, f.run_ms), load_ms, r.result, r.result_ref, f.failure, failures, input_tokens,
    output_tokens, r.versions, cancel_requested, p.step, p.total, p.unit, submitted_sequence, last_sequence, state_key
from task_changes
where submitted_sequence is not null;

update tasks
set
    state = if(new.state_key > tasks.state_key, new.state, tasks.state),
    state_key = greatest(new.state_key, tasks.state_key),
    attempt = coalesce(new.attempt, tasks.attempt),
    worker_id = if(new.attempt is null, tasks.worker_id, new.a.worker_id),
    node_id = if(new.attempt is null, tasks.node_id, new.a.node_id),
    device = if(new.attempt is null, tasks.device, new.a.device),
    revision = if(new.attempt is null, tasks.revision, new.a.revision),
    queued_at = if(new.queued_key > tasks.state_key, new.queued_at, tasks.queued_at),
    started_at = coalesce(new.started_at, tasks.started_at),
    finished_at = coalesce(tasks.finished_at, new.finished_at),
    wait_ms = coalesce(new.a.wait_ms, tasks.wait_ms),
    run_ms = coalesce(new.r.run_ms, new.f.run_ms, tasks.run_ms),
    load_ms = coalesce(new.load_ms, tasks.load_ms),
    result = coalesce(new.r.result, tasks.result),
    result_ref = coalesce(new.r.result_ref, tasks.result_ref),
    failure = coalesce(new.f.failure, tasks.failure),
    failures = tasks.failures + new.failures,
    input_tokens = coalesce(new.input_tokens, tasks.input_tokens),
    output_tokens = coalesce(new.output_tokens, tasks.output_tokens),
    versions = coalesce(new.r.versions, tasks.versions),
    cancel_requested = tasks.cancel_requested or new.cancel_requested,
    progress_step = if(new.attempt is null, coalesce(new.p.step, tasks.progress_step), new.p.step),
    progress_total = if(new.attempt is null, coalesce(new.p.total, tasks.progress_total), new.p.total),
    progress_unit = if(new.attempt is null, coalesce(new.p.unit, tasks.progress_unit), new.p.unit),
    last_sequence = new.last_sequence
from task_changes as new
where new.submitted_sequence is null and new.task_id = tasks.task_id;
