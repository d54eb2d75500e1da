-- Grain: one row per worker that ever said something.
-- Units: times are the events' own `time`, UTC; counts are since the worker's last start.
--
-- A start begins the row anew: what a former process of this name said is gone.
--
-- streams: WORKERS

-- name: table
create table self.workers (
    worker_id varchar primary key,
    node_id varchar,
    state varchar,
    pid bigint,
    device varchar,
    release varchar,
    models json,
    running bigint,
    done bigint,
    failed bigint,
    loaded json,
    rss_bytes bigint,
    device_name varchar,
    device_memory_total_bytes bigint,
    device_memory_used_bytes bigint,
    device_utilisation_percent double,
    device_temperature_c double,
    device_power_w double,
    engine_exits bigint,
    engine_exit_reason varchar,
    stop_reason varchar,
    drained boolean,
    started_at timestamp,
    seen_at timestamp,
    stopped_at timestamp,
    last_sequence ubigint
);

comment on table self.workers is 'Workers (one card''s process each); one row per worker.';
comment on column self.workers.worker_id is 'Stable name of the worker.';
comment on column self.workers.node_id is 'Machine that it runs on.';
comment on column self.workers.state is 'started or stopped, as it said; one that crashed says nothing: look at seen_at (the API and the CLI call it gone).';
comment on column self.workers.pid is 'Process id on its machine.';
comment on column self.workers.device is 'Device that it runs on, as cuda:0.';
comment on column self.workers.release is 'Version of BitingLip.';
comment on column self.workers.models is 'Models that it can run: kind, reference, revision.';
comment on column self.workers.running is 'Attempts that ran at the last heartbeat.';
comment on column self.workers.done is 'Attempts that ended well since the start.';
comment on column self.workers.failed is 'Attempts that failed since the start.';
comment on column self.workers.loaded is 'References of the models in memory at the last heartbeat.';
comment on column self.workers.rss_bytes is 'Resident memory of the worker process in bytes, without its engine process.';
comment on column self.workers.device_name is 'What its device calls itself; of several devices, the first one.';
comment on column self.workers.device_memory_total_bytes is 'Memory of the device in bytes; these readings are those of the last heartbeat, null if the driver does not tell.';
comment on column self.workers.device_memory_used_bytes is 'Memory of the device in bytes that all processes together take.';
comment on column self.workers.device_utilisation_percent is 'How busy the device is, in percent.';
comment on column self.workers.device_temperature_c is 'Temperature of the device in degrees Celsius.';
comment on column self.workers.device_power_w is 'Power that the device draws, in watts.';
comment on column self.workers.engine_exits is 'Times that its engine process ended by itself since the start.';
comment on column self.workers.engine_exit_reason is 'Why the engine process ended, the last time.';
comment on column self.workers.stop_reason is 'Why it stopped; null while it has not.';
comment on column self.workers.drained is 'Whether it has come to take nothing new, as it was asked to.';
comment on column self.workers.started_at is 'When it last started (UTC).';
comment on column self.workers.seen_at is 'Its last sign of life (UTC).';
comment on column self.workers.stopped_at is 'When it stopped (UTC); null while it has not.';
comment on column self.workers.last_sequence is 'Sequence of its last event in WORKERS.';

-- name: apply
-- when: worker.*
create or replace temp table worker_changes as
with said as (
    select
        about as worker_id,
        type,
        time,
        sequence,
        json_transform(data, '{
            "node_id": "VARCHAR", "pid": "BIGINT", "device": "JSON", "release": "VARCHAR", "models": "JSON",
            "running": "BIGINT", "done": "BIGINT", "failed": "BIGINT", "loaded": "JSON", "rss_bytes": "BIGINT",
            "reason": "VARCHAR"
        }') as said,
        max(sequence) filter (type = 'worker.started') over (partition by about) as started_sequence
    from batch
    where starts_with(type, 'worker.')
)
select
    worker_id,
    bool_or(type = 'worker.started') as begins,
    max_by(said.node_id, sequence) as node_id,
    max_by(said, sequence) filter (type = 'worker.started') as started,
    max_by(said.models, sequence) filter (type in ('worker.started', 'worker.models_changed')) as models,
    max_by(said, sequence) filter (type = 'worker.heartbeat') as beat,
    json_transform((max_by(said, sequence) filter (type = 'worker.heartbeat')).device, '{
        "name": "VARCHAR", "memory_total_bytes": "BIGINT", "memory_used_bytes": "BIGINT",
        "utilisation_percent": "DOUBLE", "temperature_c": "DOUBLE", "power_w": "DOUBLE"
    }') as reading,
    max_by(said, sequence) filter (type = 'worker.engine_exited') as exited,
    max_by(said, sequence) filter (type = 'worker.stopped') as stopped,
    max_by(type = 'worker.drained', sequence) filter (type in ('worker.drained', 'worker.undrained')) as drained,
    count_if(type = 'worker.engine_exited') as engine_exits,
    max(time) filter (type = 'worker.started') as started_at,
    max(time) as seen_at,
    max(time) filter (type = 'worker.stopped') as stopped_at,
    max(sequence) as last_sequence
from said
where sequence >= coalesce(started_sequence, 0)
group by worker_id;

create or replace temp table worker_rows as
select
    new.worker_id,
    coalesce(new.node_id, old.node_id) as node_id,
    if(new.stopped_at is not null, 'stopped', coalesce(old.state, 'started')) as state,
    coalesce(new.started.pid, old.pid) as pid,
    coalesce(new.started.device ->> '$', old.device) as device,
    coalesce(new.started.release, old.release) as release,
    coalesce(new.models, old.models) as models,
    coalesce(new.beat.running, old.running, 0) as running,
    coalesce(new.beat.done, old.done, 0) as done,
    coalesce(new.beat.failed, old.failed, 0) as failed,
    coalesce(new.beat.loaded, old.loaded, '[]') as loaded,
    coalesce(new.beat.rss_bytes, old.rss_bytes) as rss_bytes,
    if(new.beat is null, old.device_name, new.reading.name) as device_name,
    if(new.beat is null, old.device_memory_total_bytes, new.reading.memory_total_bytes) as device_memory_total_bytes,
    if(new.beat is null, old.device_memory_used_bytes, new.reading.memory_used_bytes) as device_memory_used_bytes,
    if(new.beat is null, old.device_utilisation_percent, new.reading.utilisation_percent)
        as device_utilisation_percent,
    if(new.beat is null, old.device_temperature_c, new.reading.temperature_c) as device_temperature_c,
    if(new.beat is null, old.device_power_w, new.reading.power_w) as device_power_w,
    new.engine_exits + coalesce(old.engine_exits, 0) as engine_exits,
    coalesce(new.exited.reason, old.engine_exit_reason) as engine_exit_reason,
    coalesce(new.stopped.reason, old.stop_reason) as stop_reason,
    coalesce(new.drained, old.drained, false) as drained,
    coalesce(new.started_at, old.started_at) as started_at,
    new.seen_at,
    coalesce(new.stopped_at, old.stopped_at) as stopped_at,
    new.last_sequence
from worker_changes as new
left join self.workers as old on old.worker_id = new.worker_id and not new.begins;

insert or replace into self.workers from worker_rows;
