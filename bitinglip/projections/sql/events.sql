-- Grain: one row per event of the streams TASKS, WORKERS and MODELS, as the log holds it (old versions brought up to date).
-- Units: times are UTC; `sequence` counts within its stream.

-- name: table
create table events (
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
    data json not null
);

-- name: apply
insert into events
select stream, sequence, recorded_at, time, id, type, version, source, about, causation, data
from batch
order by sequence;
