-- Some of the tasks that have waited in their queues, and some of those that have run, since before $before, by chance:
-- they may be too many to look at all.

with waiting as (
    select task_id
    from tasks
    where state = 'queued' and queued_at < $before
    order by random()
    limit $limit
),
running as (
    select task_id
    from tasks
    where state = 'running' and started_at < $before
    order by random()
    limit $limit
)
select task_id from waiting
union all
select task_id from running;
