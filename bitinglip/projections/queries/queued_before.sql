-- Some of the tasks that have waited in their queues since before $before, by chance: they may be too many to look at all.

select task_id
from tasks
where state = 'queued' and queued_at < $before
order by random()
limit $limit;
