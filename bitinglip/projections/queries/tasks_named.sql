-- The tasks with these ids, the newest first; the columns of `tasks` in their order.

select * exclude (state_key)
from tasks
where task_id in $ids
order by submitted_sequence desc;
