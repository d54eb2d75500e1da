-- Grain: one row per event of the streams TASKS, WORKERS, MODELS, SCHEDULES and LEDGER, brought up to its type's newest version.
-- Units: times are UTC; a sequence counts within its stream.
--
-- streams: TASKS WORKERS MODELS SCHEDULES LEDGER

-- name: table
create table self.events (
    stream varchar not null,
    sequence ubigint not null,
    recorded_at timestamp not null,
    time timestamp not null,
    id varchar not null,
    type varchar not null,
    version usmallint not null,
    source varchar not null,
    about varchar not null,
    causation varchar,
    data json using compression zstd not null
);

comment on table self.events is 'The event log; one row per event.';
comment on column self.events.stream is 'Stream that holds the event: TASKS, WORKERS, MODELS, SCHEDULES or LEDGER.';
comment on column self.events.sequence is 'Position in the stream, from 1.';
comment on column self.events.recorded_at is 'When the server stored it (UTC).';
comment on column self.events.time is 'When its writer says that it happened (UTC).';
comment on column self.events.id is 'Identifier of the event (ULID).';
comment on column self.events.type is 'Stable type name, as task.submitted; corrupt for bytes that are no event.';
comment on column self.events.version is 'Version of the type that data has.';
comment on column self.events.source is 'Process that wrote it.';
comment on column self.events.about is 'What it is about: a task, a worker, a model or a schedule.';
comment on column self.events.causation is 'Event or request that led to it; null if none is known.';
comment on column self.events.data is 'The fields of the event''s type.';

-- name: apply
insert into self.events
select stream, sequence, recorded_at, time, id, type, version, source, about, causation, data
from batch;

-- name: prune
delete from self.events
where recorded_at >= $since and recorded_at < $before and type in (select unnest($ticks));
