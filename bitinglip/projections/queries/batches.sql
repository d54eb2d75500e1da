-- A page of batches, the newest first, each with what has become of its tasks; or the one that $batch_id names.
-- $cursor is the opened_sequence of the last row of the page before.

with chosen as (
    select *
    from batches
    where ($batch_id is null or batch_id = $batch_id) and ($cursor is null or opened_sequence < $cursor)
    order by opened_sequence desc
    limit $limit
),
counted as (
    select batch_id, state, count(*) as tasks, min(started_at) as started_at, count(finished_at) as ended
    from tasks
    where batch_id in (select batch_id from chosen)
    group by batch_id, state
),
told as (
    select
        batch_id, json_group_object(state, tasks) as counts, min(started_at) as started_at, sum(ended) as done
    from counted
    group by batch_id
)
select
    batch_id,
    name,
    case when completed_at is not null then 'completed' when closed_at is not null then 'closed' else 'open' end,
    metadata,
    key_id,
    tasks,
    coalesce(done, 0)::bigint,
    coalesce(counts, '{}'),
    opened_at,
    closed_at,
    started_at,
    completed_at,
    opened_sequence,
    last_sequence
from chosen left join told using (batch_id)
order by opened_sequence desc;
