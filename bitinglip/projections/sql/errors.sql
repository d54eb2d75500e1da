-- Grain: one row per kind of failure, model, worker, node and hour in which an attempt failed so.
-- Units: times are the events' own `time`, UTC; the rest are counts of attempts.
--
-- part of: attempts

-- name: table
create table self.errors (
    hour_at timestamp not null,
    failure_kind varchar not null,
    model varchar not null,
    worker_id varchar not null,
    node_id varchar not null,
    failures bigint not null,
    retried bigint not null,
    final bigint not null,
    last_at timestamp not null,
    last_message varchar,
    last_task_id varchar not null,
    last_sequence ubigint not null
);

comment on table self.errors is 'Attempts that failed; one row per kind of failure, model, worker, node and hour.';
comment on column self.errors.hour_at is 'When the hour begins (UTC).';
comment on column self.errors.failure_kind is 'Kind of the failure, as out_of_memory.';
comment on column self.errors.model is 'Reference of the model, as the callers gave it.';
comment on column self.errors.worker_id is 'Worker of the attempts.';
comment on column self.errors.node_id is 'Machine of the attempts.';
comment on column self.errors.failures is 'Attempts that failed so.';
comment on column self.errors.retried is 'Those that another attempt was to follow.';
comment on column self.errors.final is 'Those with which their task ended.';
comment on column self.errors.last_at is 'When the last one failed (UTC).';
comment on column self.errors.last_message is 'What the last failure says.';
comment on column self.errors.last_task_id is 'Task of the last one.';
comment on column self.errors.last_sequence is 'Sequence of the last one''s event in TASKS.';

-- name: errors
-- when: task.failed task.dead_lettered
merge into self.errors as old
using (
    select
        date_trunc('hour', ended_at) as hour_at,
        failure_kind,
        model,
        worker_id,
        node_id,
        count(*) as failures,
        count(*) filter (not ended_task) as retried,
        count(*) filter (ended_task) as final,
        max_by(ended_at, last_sequence) as last_at,
        max_by(failure_message, last_sequence) as last_message,
        max_by(task_id, last_sequence) as last_task_id,
        max(last_sequence) as last_sequence
    from attempt_rows
    where outcome = 'failed'
    group by all
) as new
on old.hour_at = new.hour_at
    and old.failure_kind = new.failure_kind
    and old.model = new.model
    and old.worker_id = new.worker_id
    and old.node_id = new.node_id
when matched then update set
    failures = old.failures + new.failures,
    retried = old.retried + new.retried,
    final = old.final + new.final,
    last_at = new.last_at,
    last_message = new.last_message,
    last_task_id = new.last_task_id,
    last_sequence = new.last_sequence
when not matched then insert by name;
