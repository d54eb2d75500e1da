-- A page of tasks, the newest first. A parameter that is null filters nothing; $cursor is the submitted_sequence of
-- the last row of the page before. Metadata: all of $metadata (key -> value) must be there.
-- $after and $before are about its end, or about its submission while it has not ended.

select * exclude (state_key)
from tasks
where ($cursor is null or submitted_sequence < $cursor)
    and ($states is null or state in $states)
    and ($kind is null or kind = $kind)
    and ($model is null or model = $model)
    and ($lane is null or lane = $lane)
    and ($batch_id is null or batch_id = $batch_id)
    and ($key_id is null or key_id = $key_id)
    and ($submitted_after is null or submitted_at > $submitted_after)
    and ($submitted_before is null or submitted_at < $submitted_before)
    and ($failure is null or json_extract_string(failure, '$.kind') = $failure)
    and ($after is null or coalesce(finished_at, submitted_at) > $after)
    and ($before is null or coalesce(finished_at, submitted_at) < $before)
    and ($readable is null or (private and forgotten_at is null) = $readable)
    and ($metadata is null or json_contains(metadata, $metadata))
order by submitted_sequence desc
limit $limit;
