-- Grain: one row per node, device and time bucket in which it was read; older than a day, of coarser buckets.
-- Units: times are when the server stored the heartbeat, UTC; the units of the rest are in the columns' names.
--
-- Heartbeats leave the log after a while: what is older than that is here alone, and a file that is made anew without it
-- does not have it. A node and its workers may tell of the same card; all count as readings of it. A worker says once, at
-- its start, which device it is on: `device_workers` keeps that, `device_power` the last power that each card told.
--
-- streams: WORKERS

-- name: table
create table self.devices (
    node_id varchar not null,
    device varchar not null,
    bucket_at timestamp not null,
    bucket_s integer not null,
    readings bigint not null,
    utilisation_min_percent double,
    utilisation_max_percent double,
    utilisation_sum decimal(18, 3),
    utilisation_readings bigint not null,
    utilisation_avg_percent double,
    memory_used_min_bytes bigint,
    memory_used_max_bytes bigint,
    memory_used_sum decimal(38, 0),
    memory_used_readings bigint not null,
    memory_used_avg_bytes double,
    temperature_min_c double,
    temperature_max_c double,
    temperature_sum decimal(18, 3),
    temperature_readings bigint not null,
    temperature_avg_c double,
    power_min_w double,
    power_max_w double,
    power_sum decimal(18, 3),
    power_readings bigint not null,
    power_avg_w double,
    memory_total_bytes bigint,
    energy_mj bigint
);

comment on table self.devices is 'What each device did, of the readings in heartbeats; one row per node, device and time bucket.';
comment on column self.devices.node_id is 'Machine.';
comment on column self.devices.device is 'Device, as cuda:0; of a worker with several, the first one.';
comment on column self.devices.bucket_at is 'When the bucket begins (UTC, by the server''s clock).';
comment on column self.devices.bucket_s is 'Length of the bucket in seconds: 60, and 600 when it is older than a day.';
comment on column self.devices.readings is 'Heartbeats that told anything of it.';
comment on column self.devices.utilisation_min_percent is 'How busy it was, in percent: the least; null if it is not told, and so for all of this.';
comment on column self.devices.utilisation_max_percent is 'How busy it was, in percent: the most.';
comment on column self.devices.utilisation_sum is 'How busy it was, in percent: all readings added up, by which rows are merged.';
comment on column self.devices.utilisation_readings is 'Readings that told it.';
comment on column self.devices.utilisation_avg_percent is 'How busy it was, in percent: the mean.';
comment on column self.devices.memory_used_min_bytes is 'Memory of it that all processes together took, in bytes: the least; null if it is not told, and so for all of this.';
comment on column self.devices.memory_used_max_bytes is 'Memory of it that all processes together took, in bytes: the most.';
comment on column self.devices.memory_used_sum is 'Memory of it that all processes together took, in bytes: all readings added up, by which rows are merged.';
comment on column self.devices.memory_used_readings is 'Readings that told it.';
comment on column self.devices.memory_used_avg_bytes is 'Memory of it that all processes together took, in bytes: the mean.';
comment on column self.devices.temperature_min_c is 'Temperature in degrees Celsius: the least; null if it is not told, and so for all of this.';
comment on column self.devices.temperature_max_c is 'Temperature in degrees Celsius: the most.';
comment on column self.devices.temperature_sum is 'Temperature in degrees Celsius: all readings added up, by which rows are merged.';
comment on column self.devices.temperature_readings is 'Readings that told it.';
comment on column self.devices.temperature_avg_c is 'Temperature in degrees Celsius: the mean.';
comment on column self.devices.power_min_w is 'Power that it drew, in watts: the least; null if it is not told, and so for all of this.';
comment on column self.devices.power_max_w is 'Power that it drew, in watts: the most.';
comment on column self.devices.power_sum is 'Power that it drew, in watts: all readings added up, by which rows are merged.';
comment on column self.devices.power_readings is 'Readings that told it.';
comment on column self.devices.power_avg_w is 'Power that it drew, in watts: the mean.';
comment on column self.devices.memory_total_bytes is 'Memory that it has, in bytes.';
comment on column self.devices.energy_mj is 'What it drew up to each reading since the one before, in millijoules: the mean power of the two for the time between them, if that is no more than a minute.';

create table self.device_workers (
    worker_id varchar not null,
    device varchar not null,
    sequence ubigint not null
);

comment on table self.device_workers is 'Which device each worker is on; one row per worker.';
comment on column self.device_workers.worker_id is 'The worker.';
comment on column self.device_workers.device is 'Its device, the first one of several.';
comment on column self.device_workers.sequence is 'Sequence of the worker.started that said so, in WORKERS.';

create table self.device_power (
    node_id varchar not null,
    device varchar not null,
    told_at timestamp not null,
    power_w double not null,
    sequence ubigint not null
);

comment on table self.device_power is 'The last power that each device told; one row per node and device.';
comment on column self.device_power.node_id is 'Machine.';
comment on column self.device_power.device is 'Device.';
comment on column self.device_power.told_at is 'When the server stored the reading (UTC).';
comment on column self.device_power.power_w is 'Power that it drew, in watts.';
comment on column self.device_power.sequence is 'Sequence of the heartbeat in WORKERS.';

-- name: device_readings
-- when: worker.started worker.heartbeat node.heartbeat
create or replace temp table device_starts as
select worker_id, device, sequence, true as known
from self.device_workers
union all
select about, trim(split_part(json_extract_string(data, '$.device'), ',', 1)), sequence, false
from batch
where type = 'worker.started';

create or replace temp table device_readings as
with told as (
    select
        sequence,
        recorded_at,
        about,
        type,
        json_transform(data, '{
            "node_id": "VARCHAR",
            "device": {
                "memory_total_bytes": "BIGINT", "memory_used_bytes": "BIGINT", "utilisation_percent": "DOUBLE",
                "temperature_c": "DOUBLE", "power_w": "DOUBLE"
            },
            "devices": [{
                "device": "VARCHAR", "memory_total_bytes": "BIGINT", "memory_used_bytes": "BIGINT",
                "utilisation_percent": "DOUBLE", "temperature_c": "DOUBLE", "power_w": "DOUBLE"
            }]
        }') as said
    from batch
    where type in ('worker.heartbeat', 'node.heartbeat')
),
readings as (
    select sequence, recorded_at, node_id, device, unnest(reading)
    from (
        select told.sequence, recorded_at, said.node_id, device, said.device as reading
        from told asof join device_starts on told.about = worker_id and told.sequence >= device_starts.sequence
        where type = 'worker.heartbeat'
    )
    union all by name
    select sequence, recorded_at, about as node_id, unnest(said.devices, recursive := true)
    from told
    where type = 'node.heartbeat'
    union all by name
    select sequence, told_at as recorded_at, node_id, device, power_w, true as known
    from self.device_power
)
select
    * exclude known,
    lag(power_w ignore nulls) over before as former_power_w,
    epoch_us(recorded_at) - lag(if(power_w is null, null, epoch_us(recorded_at)) ignore nulls) over before as gap_us
from readings
window before as (partition by node_id, device order by sequence)
qualify known is null
    and coalesce(utilisation_percent, memory_used_bytes, memory_total_bytes, temperature_c, power_w) is not null;

merge into self.devices as old
using (
    select
        node_id,
        device,
        date_trunc('minute', recorded_at) as bucket_at,
        60 as bucket_s,
        count(*) as readings,
        min(utilisation_percent) as utilisation_min_percent,
        max(utilisation_percent) as utilisation_max_percent,
        sum(utilisation_percent::decimal(15, 3)) as utilisation_sum,
        count(utilisation_percent) as utilisation_readings,
        utilisation_sum / utilisation_readings as utilisation_avg_percent,
        min(memory_used_bytes) as memory_used_min_bytes,
        max(memory_used_bytes) as memory_used_max_bytes,
        sum(memory_used_bytes) as memory_used_sum,
        count(memory_used_bytes) as memory_used_readings,
        memory_used_sum / memory_used_readings as memory_used_avg_bytes,
        min(temperature_c) as temperature_min_c,
        max(temperature_c) as temperature_max_c,
        sum(temperature_c::decimal(15, 3)) as temperature_sum,
        count(temperature_c) as temperature_readings,
        temperature_sum / temperature_readings as temperature_avg_c,
        min(power_w) as power_min_w,
        max(power_w) as power_max_w,
        sum(power_w::decimal(15, 3)) as power_sum,
        count(power_w) as power_readings,
        power_sum / power_readings as power_avg_w,
        max(memory_total_bytes) as memory_total_bytes,
        sum(floor((former_power_w + power_w) / 2 * gap_us / 1e3 + 0.5)::bigint)
            filter (gap_us between 0 and 60000000)::bigint as energy_mj
    from device_readings
    group by all
) as new
on old.bucket_at = new.bucket_at and old.node_id = new.node_id and old.device = new.device
when matched then update set
    readings = old.readings + new.readings,
    utilisation_min_percent = least(old.utilisation_min_percent, new.utilisation_min_percent),
    utilisation_max_percent = greatest(old.utilisation_max_percent, new.utilisation_max_percent),
    utilisation_sum = coalesce(old.utilisation_sum + new.utilisation_sum, old.utilisation_sum, new.utilisation_sum),
    utilisation_readings = old.utilisation_readings + new.utilisation_readings,
    utilisation_avg_percent = coalesce(old.utilisation_sum + new.utilisation_sum, old.utilisation_sum, new.utilisation_sum)
        / (old.utilisation_readings + new.utilisation_readings),
    memory_used_min_bytes = least(old.memory_used_min_bytes, new.memory_used_min_bytes),
    memory_used_max_bytes = greatest(old.memory_used_max_bytes, new.memory_used_max_bytes),
    memory_used_sum = coalesce(old.memory_used_sum + new.memory_used_sum, old.memory_used_sum, new.memory_used_sum),
    memory_used_readings = old.memory_used_readings + new.memory_used_readings,
    memory_used_avg_bytes = coalesce(old.memory_used_sum + new.memory_used_sum, old.memory_used_sum, new.memory_used_sum)
        / (old.memory_used_readings + new.memory_used_readings),
    temperature_min_c = least(old.temperature_min_c, new.temperature_min_c),
    temperature_max_c = greatest(old.temperature_max_c, new.temperature_max_c),
    temperature_sum = coalesce(old.temperature_sum + new.temperature_sum, old.temperature_sum, new.temperature_sum),
    temperature_readings = old.temperature_readings + new.temperature_readings,
    temperature_avg_c = coalesce(old.temperature_sum + new.temperature_sum, old.temperature_sum, new.temperature_sum)
        / (old.temperature_readings + new.temperature_readings),
    power_min_w = least(old.power_min_w, new.power_min_w),
    power_max_w = greatest(old.power_max_w, new.power_max_w),
    power_sum = coalesce(old.power_sum + new.power_sum, old.power_sum, new.power_sum),
    power_readings = old.power_readings + new.power_readings,
    power_avg_w = coalesce(old.power_sum + new.power_sum, old.power_sum, new.power_sum)
        / (old.power_readings + new.power_readings),
    memory_total_bytes = greatest(old.memory_total_bytes, new.memory_total_bytes),
    energy_mj = coalesce(old.energy_mj + new.energy_mj, old.energy_mj, new.energy_mj)
when not matched then insert by name;

delete from self.device_power
where (node_id, device) in (select (node_id, device) from device_readings where power_w is not null);

insert into self.device_power
select node_id, device, max_by(recorded_at, sequence), max_by(power_w, sequence), max(sequence)
from device_readings
where power_w is not null
group by node_id, device;

-- name: device_workers
-- when: worker.started
delete from self.device_workers where worker_id in (select worker_id from device_starts where not known);

insert into self.device_workers
select worker_id, max_by(device, sequence), max(sequence)
from device_starts
where not known
group by worker_id;

-- name: prune
create or replace temp table device_rows as
select
    node_id,
    device,
    time_bucket(interval 10 minutes, bucket_at) as bucket_at,
    600 as bucket_s,
    sum(readings)::bigint as readings,
    min(utilisation_min_percent) as utilisation_min_percent,
    max(utilisation_max_percent) as utilisation_max_percent,
    sum(utilisation_sum) as utilisation_sum,
    sum(utilisation_readings)::bigint as utilisation_readings,
    sum(utilisation_sum) / sum(utilisation_readings) as utilisation_avg_percent,
    min(memory_used_min_bytes) as memory_used_min_bytes,
    max(memory_used_max_bytes) as memory_used_max_bytes,
    sum(memory_used_sum) as memory_used_sum,
    sum(memory_used_readings)::bigint as memory_used_readings,
    sum(memory_used_sum) / sum(memory_used_readings) as memory_used_avg_bytes,
    min(temperature_min_c) as temperature_min_c,
    max(temperature_max_c) as temperature_max_c,
    sum(temperature_sum) as temperature_sum,
    sum(temperature_readings)::bigint as temperature_readings,
    sum(temperature_sum) / sum(temperature_readings) as temperature_avg_c,
    min(power_min_w) as power_min_w,
    max(power_max_w) as power_max_w,
    sum(power_sum) as power_sum,
    sum(power_readings)::bigint as power_readings,
    sum(power_sum) / sum(power_readings) as power_avg_w,
    max(memory_total_bytes) as memory_total_bytes,
    sum(energy_mj)::bigint as energy_mj
from self.devices
where bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    and time_bucket(interval 10 minutes, bucket_at) in (
        select time_bucket(interval 10 minutes, bucket_at)
        from self.devices
        where bucket_s = 60 and bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    )
group by all;

delete from self.devices
where bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    and time_bucket(interval 10 minutes, bucket_at) in (select bucket_at from device_rows);

insert into self.devices by name from device_rows;
