-- What tasks made of each revision of a model. A task's attempt says the revision that it ran on.

select
    split_part(model, '@', 1) as model,
    revision,
    count(*) as runs,
    coalesce(sum(run_ms), 0) / 1000 as run_s,
    max(coalesce(finished_at, started_at)) as last_used_at
from tasks
where started_at is not null
group by all;
