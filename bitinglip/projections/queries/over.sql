-- Of these tasks, those that can leave the server: they and their batches are over, nothing came after $boundary, and no
-- task that is not over waits for them.

with asked as (
    select unnest($task_ids::varchar[]) as task_id
),
awaited as (
    select unnest(from_json(depends_on, '["VARCHAR"]')) as task_id
    from tasks
    where finished_at is null and depends_on is not null
)
select task_id
from tasks semi join asked using (task_id) anti join awaited using (task_id)
where
    state in ('succeeded', 'failed', 'cancelled', 'expired', 'dead_lettered')
    and last_sequence <= $boundary
    and (batch_id is null or batch_id in (select batch_id from batches where completed_at is not null));
