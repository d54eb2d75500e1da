-- Grain: one row per batch whose `batch.opened` is in the log.
-- Units: times are the events' own `time`, UTC. What has become of its tasks, `tasks` tells (`batch_id`).
--
-- streams: TASKS

-- name: table
create table self.batches (
    batch_id varchar primary key,
    name varchar,
    metadata json,
    key_id varchar,
    tasks bigint not null,
    opened_at timestamp not null,
    closed_at timestamp,
    completed_at timestamp,
    opened_sequence ubigint not null,
    last_sequence ubigint not null
);

comment on table self.batches is 'Batches of tasks; one row per batch.';
comment on column self.batches.batch_id is 'Identifier of the batch (ULID).';
comment on column self.batches.name is 'The caller''s own name for it; null if none was given.';
comment on column self.batches.metadata is 'The caller''s own labels.';
comment on column self.batches.key_id is 'API key that asked for it; null without keys.';
comment on column self.batches.tasks is 'How many tasks it has.';
comment on column self.batches.opened_at is 'When it was begun (UTC).';
comment on column self.batches.closed_at is 'When it was closed: nothing is added after that (UTC); null before.';
comment on column self.batches.completed_at is 'When it was seen that all of its tasks had ended (UTC); null before.';
comment on column self.batches.opened_sequence is 'Sequence of its batch.opened in TASKS.';
comment on column self.batches.last_sequence is 'Sequence of its own last event in TASKS.';

-- name: apply
-- when: batch.*
insert into self.batches
select
    about, json_extract_string(data, '$.name'), coalesce(json_extract(data, '$.metadata'), '{}'),
    json_extract_string(data, '$.key_id'), 0, time, null, null, sequence, sequence
from batch
where type = 'batch.opened'
on conflict do nothing;

update self.batches
set tasks = told.tasks, last_sequence = told.last_sequence
from (
    select about as batch_id, max(json_extract(data, '$.tasks')::bigint) as tasks, max(sequence) as last_sequence
    from batch
    where type = 'batch.extended'
    group by about
) as told
where told.batch_id = batches.batch_id;

update self.batches
set tasks = json_extract(batch.data, '$.tasks')::bigint, closed_at = batch.time, last_sequence = batch.sequence
from batch
where batch.type = 'batch.closed' and batch.about = batches.batch_id;

update self.batches
set completed_at = batch.time, last_sequence = batch.sequence
from batch
where batch.type = 'batch.completed' and batch.about = batches.batch_id;
