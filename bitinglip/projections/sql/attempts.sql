-- Grain: one row per attempt of a task whose `task.submitted` is in the log.
-- Units: times are the events' own `time`, UTC; `_ms` are milliseconds, `_j` joules; tokens and images are counts.
--
-- What an event of a task means depends on the state before it, and what it does not repeat (kind, model, lane, key) was
-- told once: `open_tasks` keeps both for the tasks that have not ended. An event that does not bring its task further
-- (`state_key`, see `tasks.sql`) is passed over: so is the `task.queued` of a timer that fired too late.
--
-- The parts are made from the same temporary tables, each in its file: queues, usage, latency, errors. So the events are
-- read once, and what is open is kept once.
--
-- streams: TASKS
-- trails
-- parts: queues usage latency errors

-- name: table
create table self.attempts (
    task_id varchar not null,
    attempt integer not null,
    kind varchar not null,
    model varchar not null,
    lane varchar not null,
    key_id varchar,
    worker_id varchar,
    node_id varchar,
    device varchar,
    revision varchar,
    assigned_at timestamp not null,
    ended_at timestamp,
    outcome varchar not null,
    ended_task boolean not null,
    failure_kind varchar,
    failure_message varchar,
    wait_ms bigint,
    load_ms double,
    run_ms double,
    batch_size bigint,
    input_tokens bigint,
    output_tokens bigint,
    images bigint,
    audio_in_ms bigint,
    audio_out_ms bigint,
    energy_j double,
    assigned_sequence ubigint not null,
    last_sequence ubigint not null
);

comment on table self.attempts is 'Attempts to run a task; one row per attempt.';
comment on column self.attempts.task_id is 'The task.';
comment on column self.attempts.attempt is 'Number of the attempt, from 1.';
comment on column self.attempts.kind is 'What is asked, as text-generation.';
comment on column self.attempts.model is 'Reference of the model, as the caller gave it.';
comment on column self.attempts.lane is 'interactive, normal or batch.';
comment on column self.attempts.key_id is 'API key that asked for the task; null without keys.';
comment on column self.attempts.worker_id is 'Worker that took it.';
comment on column self.attempts.node_id is 'Machine of the worker.';
comment on column self.attempts.device is 'Device that it ran on, as cuda:0; while it runs, and after a failure, as the worker''s setting says.';
comment on column self.attempts.revision is 'Revision of the model that it ran on; null for a model without one.';
comment on column self.attempts.assigned_at is 'When the worker took it (UTC).';
comment on column self.attempts.ended_at is 'When it ended (UTC); null while it runs.';
comment on column self.attempts.outcome is 'running, succeeded, failed or cancelled.';
comment on column self.attempts.ended_task is 'Whether the task ended with it; false for an attempt that another one is to follow.';
comment on column self.attempts.failure_kind is 'Kind of its failure, as out_of_memory; null for no failure.';
comment on column self.attempts.failure_message is 'What its failure says; null for no failure.';
comment on column self.attempts.wait_ms is 'Milliseconds from being ready to run to the assignment.';
comment on column self.attempts.load_ms is 'Milliseconds that it waited for its model; null unless it succeeded.';
comment on column self.attempts.run_ms is 'Milliseconds on the device; after a failure, since the assignment; null while it runs or if it was cancelled.';
comment on column self.attempts.batch_size is 'Tasks that were assigned together with it, itself included.';
comment on column self.attempts.input_tokens is 'Tokens that went in; null unless it succeeded.';
comment on column self.attempts.output_tokens is 'Tokens that came out; null unless it succeeded.';
comment on column self.attempts.images is 'Images that came out; null unless it succeeded.';
comment on column self.attempts.audio_in_ms is 'Milliseconds of sound that went in; null unless it succeeded.';
comment on column self.attempts.audio_out_ms is 'Milliseconds of sound that came out; null unless it succeeded.';
comment on column self.attempts.energy_j is 'Its share of what the card drew while it ran, in joules; null if the card does not tell.';
comment on column self.attempts.assigned_sequence is 'Sequence of its task.assigned in TASKS.';
comment on column self.attempts.last_sequence is 'Sequence of the event that ended it, or that assigned it, in TASKS.';

create table self.open_tasks (
    task_id varchar not null,
    kind varchar not null,
    model varchar not null,
    lane varchar not null,
    key_id varchar,
    state_key integer not null
);

comment on table self.open_tasks is 'What later events of a task do not repeat; one row per task that has not ended.';
comment on column self.open_tasks.task_id is 'The task.';
comment on column self.open_tasks.kind is 'What is asked, as text-generation.';
comment on column self.open_tasks.model is 'Reference of the model, as the caller gave it.';
comment on column self.open_tasks.lane is 'interactive, normal or batch.';
comment on column self.open_tasks.key_id is 'API key that asked for it; null without keys.';
comment on column self.open_tasks.state_key is 'How far it has come: attempt * 4 + phase (0 and 3 wait for their time, 1 queued, 2 runs).';

-- name: attempt_steps
-- when: task.submitted task.queued task.assigned task.succeeded task.failed task.cancelled task.expired task.dead_lettered
create or replace temp table attempt_steps as
with told as (
    select about as task_id, sequence, recorded_at, time, type[6:] as step, state_key
    from batch
    where state_key is not null
),
known as (
    select task_id, kind, model, lane, key_id, state_key as known_key
    from self.open_tasks
    where task_id in (select task_id from told where step != 'submitted')
    union all
    select task_id, said.kind, said.model, said.lane, said.key_id, 0
    from (
        select
            about as task_id,
            json_transform(
                data, '{"kind": "VARCHAR", "model": "VARCHAR", "lane": "VARCHAR", "key_id": "VARCHAR"}'
            ) as said
        from batch
        where type = 'task.submitted'
    )
)
select
    told.*, kind, model, lane, key_id, known_key,
    greatest(max(state_key) over before, known_key) as before_key,
    state_key = 2147483647 as ends_task
from told join known using (task_id)
window before as (partition by task_id order by sequence rows between unbounded preceding and 1 preceding)
qualify state_key > before_key;

delete from self.open_tasks
where task_id in (select task_id from attempt_steps where known_key > 0);

insert into self.open_tasks
select task_id, kind, model, lane, key_id, max(state_key)
from attempt_steps
group by task_id, kind, model, lane, key_id
having max(state_key) < 2147483647;

-- name: attempt_rows
-- when: task.assigned task.succeeded task.failed task.cancelled task.expired task.dead_lettered
create or replace temp table attempt_rows as
with begun as (
    select
        task_id, state_key // 4 as attempt, kind, model, lane, key_id, said.worker_id, said.node_id, said.device,
        said.revision, time as assigned_at, said.wait_ms, said.batch_size, sequence as assigned_sequence,
        false as known
    from attempt_steps join (
        select
            sequence,
            json_transform(data, '{
                "worker_id": "VARCHAR", "node_id": "VARCHAR", "device": "VARCHAR", "revision": "VARCHAR",
                "wait_ms": "BIGINT", "batch_size": "BIGINT"
            }') as said
        from batch
        where type = 'task.assigned'
    ) using (sequence)
    union all
    select
        task_id, attempt, kind, model, lane, key_id, worker_id, node_id, device,
        revision, assigned_at, wait_ms, batch_size, assigned_sequence,
        true as known
    from self.attempts
    where ended_at is null and task_id in (select task_id from attempt_steps where before_key % 4 = 2)
),
ended as (
    select
        task_id, before_key // 4 as attempt, sequence, time, step, ends_task, failure_kind, said,
        step = 'succeeded' as succeeded
    from attempt_steps join (
        select
            sequence,
            failure_kind,
            json_transform(data, '{
                "device": "VARCHAR", "run_ms": "DOUBLE", "load_ms": "DOUBLE", "failure": {"message": "VARCHAR"},
                "usage": {
                    "input_tokens": "BIGINT", "output_tokens": "BIGINT", "images": "BIGINT",
                    "audio_in_ms": "BIGINT", "audio_out_ms": "BIGINT", "energy_j": "DOUBLE"
                }
            }') as said
        from batch
        where type in ('task.succeeded', 'task.failed', 'task.cancelled', 'task.dead_lettered')
    ) using (sequence)
    where before_key % 4 = 2
)
select
    begun.task_id,
    begun.attempt,
    begun.kind,
    begun.model,
    begun.lane,
    begun.key_id,
    begun.worker_id,
    begun.node_id,
    coalesce(ended.said.device, begun.device) as device,
    begun.revision,
    begun.assigned_at,
    ended.time as ended_at,
    case ended.step when 'dead_lettered' then 'failed' else coalesce(ended.step, 'running') end as outcome,
    coalesce(ended.ends_task, false) as ended_task,
    ended.failure_kind,
    ended.said.failure.message as failure_message,
    begun.wait_ms,
    if(succeeded, coalesce(ended.said.load_ms, 0), null) as load_ms,
    ended.said.run_ms,
    begun.batch_size,
    if(succeeded, coalesce(ended.said.usage.input_tokens, 0), null) as input_tokens,
    if(succeeded, coalesce(ended.said.usage.output_tokens, 0), null) as output_tokens,
    if(succeeded, coalesce(ended.said.usage.images, 0), null) as images,
    if(succeeded, coalesce(ended.said.usage.audio_in_ms, 0), null) as audio_in_ms,
    if(succeeded, coalesce(ended.said.usage.audio_out_ms, 0), null) as audio_out_ms,
    ended.said.usage.energy_j,
    begun.assigned_sequence,
    coalesce(ended.sequence, begun.assigned_sequence) as last_sequence,
    begun.known
from begun left join ended using (task_id, attempt);

delete from self.attempts
where ended_at is null and task_id in (select task_id from attempt_rows where known);

insert into self.attempts select * exclude known from attempt_rows;
