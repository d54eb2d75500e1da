-- What waits and runs, by lane and model, and since when the oldest waits.

select
    lane,
    model,
    count_if(state = 'queued'),
    count_if(state = 'running'),
    min(queued_at) filter (state = 'queued')
from tasks
where state in ('queued', 'running')
group by all
order by all;
