-- Tasks that have waited in their queues, and tasks that have run, since before $before, so many of each at most; by chance,
-- but rather those of which it is likely that nobody is given their work.
--
-- Of those that wait these are the first ones of each queue: what is before them was handed out. Of those that run these are
-- the ones whose worker has stopped or was started anew since, says that it runs nothing, or has been silent since $silent.

with waiting as (
    select task_id, row_number() over (partition by lane, model, vram_gb, labels order by queued_at, last_sequence) as place
    from tasks
    where state = 'queued' and queued_at < $before
),
first as (
    select task_id
    from waiting
    order by place * random()
    limit $limit
),
running as (
    select tasks.task_id
    from tasks left join workers on workers.worker_id = tasks.worker_id
    where
        tasks.state = 'running'
        and tasks.started_at < $before
        and (
            workers.worker_id is null
            or workers.state = 'stopped'
            or workers.running = 0
            or workers.started_at > tasks.started_at
            or workers.seen_at < $silent
        )
    order by random()
    limit $limit
)
select task_id from first
union all
select task_id from running;
