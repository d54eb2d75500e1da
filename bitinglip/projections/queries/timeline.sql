-- What happened from $begin to $until, in buckets of $width_us microseconds: counts by bucket (from 1) and by what.
-- `arrived`, `started` and the states in which tasks ended are counts; `waiting`, `running` and `workers` are changes,
-- whose sums up to a bucket are what there was at its end. What was before counts as a change of the first bucket.
--
-- A task that was attempted no more than once says all of it in its row; the others are asked of their events, where a
-- timer that fired too late changes nothing.
-- A worker that fell silent is taken to have lived $silence_s longer, if it was not seen since $alive_since.
-- The large parts are counted each for itself, by the bucket alone: that is several times as fast as all of them at once.

with alive as (
    select
        task_id,
        run_at is not null or depends_on is not null as delayed,
        epoch_us(queued_at - $begin) // $width_us + 1 as queued,
        epoch_us(started_at - $begin) // $width_us + 1 as started,
        epoch_us(finished_at - $begin) // $width_us + 1 as finished,
        started_at >= $begin as starts,
        attempt = 0 or (attempt = 1 and (failure is null or state in ('failed', 'dead_lettered'))) as plain
    from tasks
    where submitted_at < $until and coalesce(finished_at, $until) >= $begin
),
steps as (
    select
        about, sequence, time, type, delayed,
        case type  -- how far it brings its task: the `state_key` of tasks.sql
            when 'task.submitted' then if(delayed, 4, 5)
            when 'task.queued' then (data->>'attempt')::integer * 4 + 1
            when 'task.assigned' then (data->>'attempt')::integer * 4 + 2
            when 'task.failed' then if(data->>'retry_at' is null, 2147483647, (data->>'attempt')::integer * 4 + 3)
            else 2147483647
        end as key
    from events join alive on task_id = about and not plain
    where stream = 'TASKS'
        and sequence >= (select min(submitted_sequence) from tasks where coalesce(finished_at, $until) >= $begin)
        and type in (
            'task.submitted', 'task.queued', 'task.assigned', 'task.failed', 'task.succeeded', 'task.cancelled',
            'task.expired', 'task.dead_lettered'
        )
    qualify type <> 'task.queued' or key > coalesce(
        max(key) over (partition by about order by sequence rows between unbounded preceding and 1 preceding), 0
    )
),
spans as (
    select
        what,
        start >= $begin as starts,
        epoch_us(start - $begin) // $width_us + 1 as start,
        epoch_us(stop - $begin) // $width_us + 1 as stop
    from (
        select
            case
                when type = 'task.queued' or (type = 'task.submitted' and not delayed) then 'waiting'
                when type = 'task.assigned' then 'running'
            end as what,
            time as start,
            lead(time) over (partition by about order by sequence) as stop
        from steps
        union all
        select
            'workers', start,
            coalesce(stop, if(seen_at < $alive_since, seen_at + to_milliseconds($silence_s * 1000), null))
        from (
            select about, type, time as start, lead(time) over (partition by about order by sequence) as stop
            from events
            where stream = 'WORKERS' and type in ('worker.started', 'worker.stopped')
        )
        left join workers on worker_id = about
        where type = 'worker.started'
    )
    where what is not null
),
found as (
    select epoch_us(submitted_at - $begin) // $width_us + 1 as bucket, 'arrived' as what, count(*) as n
    from tasks
    where submitted_at >= $begin and submitted_at < $until
    group by bucket
    union all
    select epoch_us(finished_at - $begin) // $width_us + 1 as bucket, state, count(*)
    from tasks
    where finished_at >= $begin and finished_at < $until
    group by all
    union all
    select started, 'started', count(*) from alive where plain and starts group by started
    union all
    select start, 'started', count(*) from spans where what = 'running' and starts group by start
    union all
    select greatest(queued, 1) as bucket, 'waiting', count(*) from alive where plain and queued is not null group by bucket
    union all
    select greatest(coalesce(started, finished), 1) as bucket, 'waiting', -count(*)
    from alive
    where plain and queued is not null and coalesce(started, finished) is not null
    group by bucket
    union all
    select greatest(started, 1) as bucket, 'running', count(*) from alive where plain and started is not null group by bucket
    union all
    select greatest(finished, 1) as bucket, 'running', -count(*)
    from alive
    where plain and started is not null and finished is not null
    group by bucket
    union all
    select greatest(start, 1) as bucket, what, count(*) from spans group by all
    union all
    select greatest(stop, 1) as bucket, what, -count(*) from spans where stop is not null group by all
)
select bucket, what, sum(n)::bigint
from found
where bucket <= $buckets
group by all
order by all;
