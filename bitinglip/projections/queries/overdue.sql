-- Tasks for which something has been due since $before and has not come: to be queued, to expire, or to be released, as all
-- that they wait for has ended. The oldest first.

with waiting as (
    select task_id, state, attempt, depends_on, coalesce(retry_at, run_at) as due_at, expires_at, submitted_sequence
    from tasks
    where state in ('scheduled', 'queued')
),
awaited as (
    select task_id, unnest(from_json(depends_on, '["VARCHAR"]')) as other_id
    from waiting
    where state = 'scheduled' and attempt = 0 and depends_on is not null
),
free as (
    select awaited.task_id
    from awaited left join tasks on tasks.task_id = awaited.other_id
    group by awaited.task_id
    having bool_and(tasks.task_id is null or coalesce(tasks.finished_at < $before, false))
)
select task_id
from waiting
where (state = 'scheduled' and due_at < $before)
    or (attempt = 0 and expires_at < $before)
    or task_id in (select task_id from free)
order by submitted_sequence
limit $limit;
