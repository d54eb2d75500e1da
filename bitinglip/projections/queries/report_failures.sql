-- One row per group and bucket of time; `$by`: failure, model, worker or node; `$step`: hour, day or week.
select
    case $by when 'failure' then failure_kind when 'model' then model when 'worker' then worker_id else node_id end
        as name,
    date_trunc($step, hour_at)::timestamp as bucket_at,
    sum(failures)::bigint as failures,
    sum(retried)::bigint as retried,
    sum(final)::bigint as final,
    max(last_at) as last_at,
    arg_max(last_message, last_at) as last_message,
    arg_max(last_task_id, last_at) as last_task_id
from errors
where hour_at >= $since and hour_at < $until and ($model is null or model = $model)
group by all;
