-- One task by its id; the columns of `tasks` in their order.

select * exclude (state_key)
from tasks
where task_id = $task_id;
