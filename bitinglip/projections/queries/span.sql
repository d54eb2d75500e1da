-- Where a task's events lie in TASKS.

select submitted_sequence, last_sequence from tasks where task_id = $task_id;
