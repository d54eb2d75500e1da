-- Grain: one row per lane, model and time bucket in which something came or went; older than a day, of coarser buckets.
-- Units: times are when the server stored the events, UTC; the rest are counts of tasks.
--
-- The flows of a bucket are sums, and what is there at its end is the sum of all flows up to then. The depth at any
-- time is that of the last row of its lane and model that began by then; a lane and model without one had none.
--
-- part of: attempts

-- name: table
create table self.queues (
    lane varchar not null,
    model varchar not null,
    bucket_at timestamp not null,
    bucket_s integer not null,
    arrivals bigint not null,
    departures bigint not null,
    starts bigint not null,
    ends bigint not null,
    depth bigint not null,
    running bigint not null
);

comment on table self.queues is 'What came into each queue and went out of it; one row per lane, model and time bucket with a change.';
comment on column self.queues.lane is 'interactive, normal or batch.';
comment on column self.queues.model is 'Reference of the model, as the callers gave it.';
comment on column self.queues.bucket_at is 'When the bucket begins (UTC, by the server''s clock).';
comment on column self.queues.bucket_s is 'Length of the bucket in seconds: 10, and 600 when it is older than a day.';
comment on column self.queues.arrivals is 'Tasks that became ready to run; one that is tried again counts again.';
comment on column self.queues.departures is 'Tasks that left the queue: they were assigned, or cancelled or expired before that.';
comment on column self.queues.starts is 'Attempts that were assigned to a worker.';
comment on column self.queues.ends is 'Attempts that ended, however.';
comment on column self.queues.depth is 'Tasks that are ready and wait at the end of the bucket.';
comment on column self.queues.running is 'Attempts that run at the end of the bucket.';

-- name: queues
-- when: task.submitted task.queued task.assigned task.succeeded task.failed task.cancelled task.expired task.dead_lettered
create or replace temp table queue_rows as
with told as (
    select
        lane,
        model,
        time_bucket(interval 10 seconds, recorded_at) as bucket_at,
        10 as bucket_s,
        count_if(state_key % 4 = 1) as arrivals,
        count_if(before_key % 4 = 1) as departures,
        count_if(step = 'assigned') as starts,
        count_if(before_key % 4 = 2) as ends
    from attempt_steps
    group by all
),
spans as (select lane, model, min(bucket_at) as first_at from told group by all),
former as (
    select lane, model, max_by(depth, bucket_at) as depth, max_by(running, bucket_at) as running
    from self.queues join spans using (lane, model)
    where bucket_at < first_at
    group by all
),
merged as (
    select
        lane, model, bucket_at, max(bucket_s) as bucket_s, sum(arrivals) as arrivals, sum(departures) as departures,
        sum(starts) as starts, sum(ends) as ends
    from (
        from told
        union all
        select lane, model, bucket_at, bucket_s, arrivals, departures, starts, ends
        from self.queues join spans using (lane, model)
        where bucket_at >= first_at
    )
    group by all
)
select
    merged.*,
    coalesce(former.depth, 0) + sum(arrivals - departures) over so_far as depth,
    coalesce(former.running, 0) + sum(starts - ends) over so_far as running
from merged left join former using (lane, model)
where arrivals + departures + starts + ends > 0
window so_far as (partition by lane, model order by bucket_at);

delete from self.queues
using queue_rows as new
where queues.lane = new.lane and queues.model = new.model and queues.bucket_at = new.bucket_at;

insert into self.queues from queue_rows;

-- name: prune
create or replace temp table queue_rows as
select
    lane,
    model,
    time_bucket(interval 10 minutes, bucket_at) as bucket_at,
    600 as bucket_s,
    sum(arrivals) as arrivals,
    sum(departures) as departures,
    sum(starts) as starts,
    sum(ends) as ends,
    max_by(depth, queues.bucket_at) as depth,
    max_by(running, queues.bucket_at) as running
from self.queues
where queues.bucket_at < time_bucket(interval 10 minutes, $now - interval 1 day)
    and time_bucket(interval 10 minutes, queues.bucket_at) in (
        select time_bucket(interval 10 minutes, bucket_at) from self.queues where bucket_s = 10
    )
group by all;

delete from self.queues
using queue_rows as new
where queues.lane = new.lane
    and queues.model = new.model
    and time_bucket(interval 10 minutes, queues.bucket_at) = new.bucket_at;

insert into self.queues from queue_rows;
