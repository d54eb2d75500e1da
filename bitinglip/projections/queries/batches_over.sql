-- Batches that are closed and not completed, though all of their tasks have ended, with how those ended.

with waiting as (select batch_id, tasks, last_sequence from batches where closed_at is not null and completed_at is null),
counted as (
    select batch_id, state, count(*) as tasks, count(finished_at) as ended
    from tasks
    where batch_id in (select batch_id from waiting)
    group by batch_id, state
),
told as (
    select batch_id, json_group_object(state, tasks) as counts, sum(ended) as ended from counted group by batch_id
)
select batch_id, last_sequence, tasks, coalesce(counts, '{}')
from waiting left join told using (batch_id)
where coalesce(ended, 0) = tasks;
