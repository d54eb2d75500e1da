-- Grain: one row per event that a request led to: who asked for what, and when.
-- Units: times are UTC; a sequence counts within its stream.
--
-- It applies to every batch: any type of event may be one that somebody asked for, and none is to be missed.
--
-- streams: TASKS WORKERS MODELS SCHEDULES LEDGER

-- name: table
create table self.audit (
    stream varchar not null,
    sequence ubigint not null,
    recorded_at timestamp not null,
    type varchar not null,
    about varchar not null,
    key_id varchar,
    address varchar,
    request_id varchar not null
);

comment on table self.audit is 'Who asked for what; one row per event that a request led to.';
comment on column self.audit.stream is 'Stream that holds the event: TASKS, WORKERS, MODELS, SCHEDULES or LEDGER.';
comment on column self.audit.sequence is 'Its position in the stream.';
comment on column self.audit.recorded_at is 'When the server stored it (UTC).';
comment on column self.audit.type is 'Type of the event, as task.cancelled.';
comment on column self.audit.about is 'What it is about: a task, a batch, a node, a model or a schedule.';
comment on column self.audit.key_id is 'Name of the key that the request came with; null on a gateway without one.';
comment on column self.audit.address is 'Address or network that it came from, as gateway.record_address has it; null if that is off.';
comment on column self.audit.request_id is 'Id of the request, as its answer had it in X-Request-Id.';

-- name: apply
insert into self.audit
select stream, sequence, recorded_at, type, about, actor_key, actor_address, request_id
from batch
where request_id is not null;
