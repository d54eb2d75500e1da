-- What happened from $begin to $until, in buckets of $width_us microseconds: counts by bucket (from 1) and by what.
-- `arrived`, `started` and the states in which tasks ended are counts; `waiting`, `running` and `workers` are changes,
-- whose sums up to a bucket are what there was at its end. What was before counts as a change of the first bucket.
--
-- A task waits once and runs once for each attempt: its row tells of the latest, `setbacks` of those before. When a task
-- was last ready is told by both if it was not made ready again in between: then it counts where it is met first.
-- A worker that fell silent is taken to have lived $silence_s longer, if it was not seen since $alive_since.
-- The large parts are counted each for itself, by the bucket alone: that is several times as fast as all of them at once.

with alive as (
    select
        task_id, attempt, queued_at, started_at, finished_at,
        attempt = 0 or (attempt = 1 and (failure is null or state in ('failed', 'dead_lettered'))) as plain
    from tasks
    where submitted_at < $until and coalesce(finished_at, $until) >= $begin
),
tries as (
    select queued_at as queued, coalesce(started_at, finished_at) as picked, started_at as started, finished_at as ended
    from alive
    where plain
    union all
    select
        if(alive.queued_at is distinct from before.queued_at, alive.queued_at, null),
        if(alive.attempt > before.attempt, started_at, finished_at),
        if(alive.attempt > before.attempt, started_at, null),
        finished_at
    from alive join (
        select task_id, max(attempt) as attempt, arg_max(queued_at, attempt) as queued_at from setbacks group by task_id
    ) as before using (task_id)
    where not plain
    union all
    select
        if(queued_at is distinct from lag(queued_at) over (partition by task_id order by attempt), queued_at, null),
        started_at, started_at, failed_at
    from setbacks
),
turns as materialized (
    select
        started >= $begin as starts,
        (epoch_us(queued) - epoch_us($begin::timestamp)) // $width_us + 1 as queued,
        (epoch_us(picked) - epoch_us($begin::timestamp)) // $width_us + 1 as picked,
        (epoch_us(started) - epoch_us($begin::timestamp)) // $width_us + 1 as started,
        (epoch_us(ended) - epoch_us($begin::timestamp)) // $width_us + 1 as ended
    from tries
),
online as (
    select
        (epoch_us(start) - epoch_us($begin::timestamp)) // $width_us + 1 as start,
        (epoch_us(
            coalesce(stop, if(seen_at < $alive_since, seen_at + to_milliseconds($silence_s * 1000), null))
        ) - epoch_us($begin::timestamp)) // $width_us + 1 as stop
    from (
        select about, type, time as start, lead(time) over (partition by about order by sequence) as stop
        from events
        where stream = 'WORKERS' and type in ('worker.started', 'worker.stopped')
    )
    left join workers on worker_id = about
    where type = 'worker.started'
),
found as (
    select (epoch_us(submitted_at) - epoch_us($begin::timestamp)) // $width_us + 1 as bucket, 'arrived' as what, count(*) as n
    from tasks
    where submitted_at >= $begin and submitted_at < $until
    group by bucket
    union all
    select (epoch_us(finished_at) - epoch_us($begin::timestamp)) // $width_us + 1 as bucket, state, count(*)
    from tasks
    where finished_at >= $begin and finished_at < $until
    group by all
    union all
    select started, 'started', count(*) from turns where starts group by started
    union all
    select greatest(queued, 1) as bucket, 'waiting', count(*) from turns where queued is not null group by bucket
    union all
    select greatest(picked, 1) as bucket, 'waiting', -count(*)
    from turns
    where queued is not null and picked is not null
    group by bucket
    union all
    select greatest(started, 1) as bucket, 'running', count(*) from turns where started is not null group by bucket
    union all
    select greatest(ended, 1) as bucket, 'running', -count(*)
    from turns
    where started is not null and ended is not null
    group by bucket
    union all
    select greatest(start, 1) as bucket, 'workers', count(*) from online group by bucket
    union all
    select greatest(stop, 1) as bucket, 'workers', -count(*) from online where stop is not null group by bucket
)
select bucket, what, sum(n)::bigint
from found
where bucket <= $buckets
group by all
order by all;
