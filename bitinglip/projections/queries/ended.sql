-- How many tasks a worker has brought to their end since a time, by lane and model; those that were cancelled or expired
-- say nothing about how fast the others go.

select lane, model, count(*)
from tasks
where finished_at >= $since and state in ('succeeded', 'failed', 'dead_lettered')
group by all;
