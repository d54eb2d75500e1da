-- Grain: one row per lane, model and time bucket in which something came or went; older than a day, of coarser buckets.
-- Units: times are when the server stored the events, UTC; the rest are counts of tasks.
--
-- The flows of a bucket are sums, so they do not depend on the order in which events are met; what is there at its end is
-- the sum of all flows up to then, and made when it is asked. The depth at any time is that of the last row of its lane
-- and model that began by then; a lane and model without one had none.
--
-- part of: attempts

-- name: table
create table self.queue_flows (
    lane varchar not null,
    model varchar not null,
    bucket_at timestamp not null,
    bucket_s integer not null,
    arrivals bigint not null,
    departures bigint not null,
    starts bigint not null,
    ends bigint not null
);

comment on table self.queue_flows is 'What came into each queue and went out of it; one row per lane, model and time bucket with a change.';
comment on column self.queue_flows.lane is 'interactive, normal or batch.';
comment on column self.queue_flows.model is 'Reference of the model, as the callers gave it.';
comment on column self.queue_flows.bucket_at is 'When the bucket begins (UTC, by the server''s clock).';
comment on column self.queue_flows.bucket_s is 'Length of the bucket in seconds: 10, and 600 when it is older than a day.';
comment on column self.queue_flows.arrivals is 'Tasks that became ready to run; one that is tried again counts again.';
comment on column self.queue_flows.departures is 'Tasks that left the queue: they were assigned, or cancelled or expired before that.';
comment on column self.queue_flows.starts is 'Attempts that were assigned to a worker.';
comment on column self.queue_flows.ends is 'Attempts that ended, however.';

create view self.queues as
select
    *,
    sum(arrivals - departures) over so_far::bigint as depth,
    sum(starts - ends) over so_far::bigint as running
from self.queue_flows
window so_far as (partition by lane, model order by bucket_at);

comment on view self.queues is 'How deep each queue was, and what came and went; one row per lane, model and time bucket with a change.';
comment on column self.queues.lane is 'interactive, normal or batch.';
comment on column self.queues.model is 'Reference of the model, as the callers gave it.';
comment on column self.queues.bucket_at is 'When the bucket begins (UTC, by the server''s clock).';
comment on column self.queues.bucket_s is 'Length of the bucket in seconds: 10, and 600 when it is older than a day.';
comment on column self.queues.arrivals is 'Tasks that became ready to run; one that is tried again counts again.';
comment on column self.queues.departures is 'Tasks that left the queue: they were assigned, or cancelled or expired before that.';
comment on column self.queues.starts is 'Attempts that were assigned to a worker.';
comment on column self.queues.ends is 'Attempts that ended, however.';
comment on column self.queues.depth is 'Tasks that were ready and waited at the end of the bucket.';
comment on column self.queues.running is 'Attempts that ran at the end of the bucket.';

-- name: queue_flows
-- when: task.submitted task.queued task.assigned task.succeeded task.failed task.cancelled task.expired task.dead_lettered
merge into self.queue_flows as old
using (
    select
        lane,
        model,
        time_bucket(interval 10 seconds, recorded_at) as bucket_at,
        10 as bucket_s,
        count(*) filter (state_key % 4 = 1) as arrivals,
        count(*) filter (before_key % 4 = 1) as departures,
        count(*) filter (state_key % 4 = 2) as starts,
        count(*) filter (before_key % 4 = 2) as ends
    from attempt_steps
    group by all
    having arrivals + departures + starts + ends > 0
) as new
on old.bucket_at = new.bucket_at and old.model = new.model and old.lane = new.lane
when matched then update set
    arrivals = old.arrivals + new.arrivals,
    departures = old.departures + new.departures,
    starts = old.starts + new.starts,
    ends = old.ends + new.ends
when not matched then insert by name;

-- name: prune
create or replace temp table queue_rows as
select
    lane,
    model,
    time_bucket(interval 10 minutes, bucket_at) as bucket_at,
    600 as bucket_s,
    sum(arrivals)::bigint as arrivals,
    sum(departures)::bigint as departures,
    sum(starts)::bigint as starts,
    sum(ends)::bigint as ends
from self.queue_flows
where bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    and time_bucket(interval 10 minutes, bucket_at) in (
        select time_bucket(interval 10 minutes, bucket_at)
        from self.queue_flows
        where bucket_s = 10 and bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    )
group by all;

delete from self.queue_flows
where bucket_at < time_bucket(interval 10 minutes, $now::timestamp - interval 1 day)
    and time_bucket(interval 10 minutes, bucket_at) in (select bucket_at from queue_rows);

insert into self.queue_flows from queue_rows;
